"""How old a picture is when the live view shows it, from a synthetic camera to a synthetic display.

python eval/glass.py --out eval/results/glass.json
"""

from handmesh.evaluation.glass import main
from handmesh.mistakes import in_one_line

if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
