"""Post-training int8 by nncf against our int8 twin: what each costs in mm and takes in ms under OpenVINO.

pip install 'handmesh[nncf]'
python eval/int8_nncf.py --data runs/synth --out eval/results/int8_nncf.json
"""

from handmesh.evaluation.int8_nncf import main
from handmesh.mistakes import in_one_line

if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
