"""The FastViT paper's claims of speed on this processor: folding, RepMixer, training branches, other backbones.

python eval/paper_speed.py all --out eval/results/paper_speed.json
python eval/paper_speed.py mixing --out eval/results/paper_speed.json     # one question, the others' answers stay
"""

from handmesh.evaluation.paper_speed import main
from handmesh.mistakes import in_one_line

if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
