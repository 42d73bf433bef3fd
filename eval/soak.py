"""Ten minutes of live view: flat memory, flat latency?

python eval/soak.py --out eval/results/soak.json
"""

from handmesh.evaluation.soak import main
from handmesh.mistakes import in_one_line

if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
