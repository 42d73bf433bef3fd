"""Ablations of the FastViT paper on hands: same head, data, samples and schedule for every backbone.

    python eval/ablations.py mixer --data runs/synth                      # or several names, or: all
    python eval/ablations.py all --data ROOT --samples 4000000 --size 224 --out runs/ablations_224   # with a GPU
    python eval/ablations.py report --data runs/synth                     # table and plot of what has been run

Every arm resumes where it stopped; finished arms are not run again. `report` times training and inference too.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from handmesh.mistakes import in_one_line
from handmesh.training.ablation_report import MEASURES, write_report
from handmesh.training.ablations import ABLATIONS, Protocol, run_arm
from handmesh.training.cpu_ops import reuse_freed_memory

NOISE_ARM = "fastvit_t8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*ABLATIONS, "noise", "all", "report"])
    parser.add_argument("--data", type=Path, required=True, help="a rendered set with training and evaluation split")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder of the runs (%(default)s)")
    parser.add_argument("--samples", type=int, default=Protocol.samples, help="an arm's training (%(default)s)")
    parser.add_argument("--size", type=int, default=Protocol.size, help="crop size in px (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=Protocol.batch_size)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of every arm")
    parser.add_argument("--noise-seeds", type=int, nargs="+", default=[1, 2, 3], help=f"of {NOISE_ARM}, for: noise")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--results", type=Path, default=Path("eval/results"), help="where the report goes")
    parser.add_argument("--no-times", action="store_true", help="report errors only")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    protocol = Protocol(
        args.data, args.out, args.samples, args.size, args.batch_size, device=device, workers=args.workers
    )
    reuse_freed_memory()
    names = [*ABLATIONS, "noise"] if "all" in args.names else args.names
    wanted = [(arm, seed) for name in names if name in ABLATIONS for arm in ABLATIONS[name] for seed in args.seeds]
    wanted += [(NOISE_ARM, seed) for name in names if name == "noise" for seed in args.noise_seeds]
    for arm, seed in dict.fromkeys(wanted):
        errors = run_arm(arm, protocol, seed)
        print(arm, seed, " ".join(f"{key}={errors[key]:.4g}" for key in MEASURES if key in errors))
    if "report" in args.names:
        write_report(protocol, args.results, timed=not args.no_times)


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
