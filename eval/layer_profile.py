"""Where the hand network's time goes: by stage, by operator and by layer, in float32 and int8, as onnxruntime runs it.

python eval/layer_profile.py --out eval/results/layer_profile.json
"""

from handmesh.evaluation.layer_profile import main
from handmesh.mistakes import in_one_line

if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
