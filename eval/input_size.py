"""The curve of error against latency over the crop's size, in float32 and int8: is a `lite` variant worth it?

python eval/input_size.py --data runs/synth --out eval/results/input_size.json
"""

from handmesh.evaluation.input_size import main

if __name__ == "__main__":
    main()
