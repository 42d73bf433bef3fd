"""The curve of error against latency over the crop's size, in float32 and int8: is a `lite` variant worth it?

python eval/input_size.py --data runs/synth --out eval/results/input_size.json
"""

from handmesh.evaluation.input_size import main
from handmesh.mistakes import in_one_line

if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
