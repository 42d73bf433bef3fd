"""Count parameters and multiply-accumulates of every FastViT variant under both heads, training form and folded.

python eval/network_size.py --size 128 --out eval/results/network_size.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from handmesh.evaluation.report import write_result
from handmesh.mistakes import in_one_line
from handmesh.model.backbone import VARIANTS
from handmesh.model.deploy import fold
from handmesh.model.head import HEADS
from handmesh.model.regressor import HandRegressor, NetworkConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="crop size in px")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json")
    args = parser.parse_args()
    rows = []
    for variant in VARIANTS:
        for head in HEADS:
            network = HandRegressor(NetworkConfig(variant=variant, head=head, input_size=args.size)).eval()
            folded = fold(network)
            rows.append(
                {
                    "variant": variant,
                    "head": head,
                    "backbone_parameters": count(network.backbone),
                    "head_parameters": count(network.head),
                    "folded_parameters": count(folded.backbone) + count(folded.head),
                    "macs": macs(folded, args.size),
                }
            )
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()))
    write_result(args.out, {"crop_px": args.size, "counted": "convolutions and matrix products", "rows": rows})


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def macs(network: HandRegressor, size: int) -> int:
    """Multiply-accumulates of one crop, posing the hand included."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
