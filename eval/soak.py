"""Ten minutes of live view: flat memory, flat latency?

python eval/soak.py --out eval/results/soak.json
"""

from handmesh.evaluation.soak import main

if __name__ == "__main__":
    main()
