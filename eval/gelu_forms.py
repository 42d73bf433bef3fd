"""Other forms of GELU in the exported hand network and its int8 twin: milliseconds saved, millimetres lost.

python eval/gelu_forms.py --data runs/synth --out eval/results/gelu_forms.json
"""

from handmesh.evaluation.gelu_forms import main

if __name__ == "__main__":
    main()
