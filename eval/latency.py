"""Time the live view, its stages, its network and its peers on this machine; the same as `handmesh bench`.

python eval/latency.py --out eval/results/latency.json
python eval/latency.py --mediapipe-python peer/bin/python --backbones runs/backbones --out eval/results/latency.json
"""

from handmesh.evaluation.latency import main
from handmesh.mistakes import in_one_line

if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
