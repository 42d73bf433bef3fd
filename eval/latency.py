"""Time the live view, its stages, its network and its peers on this machine; the same as `handmesh bench`.

python eval/latency.py --out eval/results/latency.json
python eval/latency.py --mediapipe-python peer/bin/python --backbones runs/backbones --out eval/results/latency.json
"""

from handmesh.evaluation.latency import main

if __name__ == "__main__":
    main()
