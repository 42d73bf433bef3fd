"""What the FastViT paper says of speed (Vasu et al., ICCV 2023), measured on this processor.

Everything runs on one thread and is timed by the processor time that it takes, contenders in turns, so that other
programs change little. Weights are untrained: they do not change how long a convolution takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from timm.models.fastvit import FastVit
from timm.models.metaformer import MetaFormerBlock
from torch import nn

from handmesh.atomic import written_whole
from handmesh.evaluation.backbones import PEERS, build_folded, export_backbone
from handmesh.evaluation.report import write_result
from handmesh.evaluation.timing import Runs, in_turns, repeated, summary
from handmesh.model.ablated import drop_branches
from handmesh.model.backbone import VARIANTS, Variant, build_backbone
from handmesh.model.deploy import fold_backbone

MIXER_SIZES = (224, 256, 384, 512, 768, 1024)
TRAINED: tuple[Variant, ...] = ("t8", "s12", "sa12", "sa36")

#: The paper's own numbers: an iPhone for the mixer, GPUs for training.
PAPER = {
    "mixer_saves": {"384": 0.251, "1024": 0.439},
    "branches_cost": {"sa12": 0.067, "sa36": 0.044},
}

_log = logging.getLogger(__name__)


def work(run: Callable[[], object]) -> Runs:
    """A contender timed by its processor time."""
    return repeated(run, time.process_time)


def medians(contenders: dict[str, Runs], turns: int, runs: int) -> dict[str, float]:
    """Median milliseconds of work of each contender."""
    times = in_turns(contenders, turns=turns, runs=runs)
    return {name: summary(values)["median_ms"] for name, values in times.items()}


def in_torch(model: nn.Module, image: torch.Tensor) -> Runs:
    """A network in evaluation mode on one picture, in torch."""
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model(image)

    return work(run)


def opened(model: nn.Module, size: int, *, any_size: bool = False) -> onnxruntime.InferenceSession:
    """A network in onnxruntime on one thread, exported as we export ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.onnx"
        export_backbone(model.eval(), size, path, any_size=any_size)
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def in_onnxruntime(session: onnxruntime.InferenceSession, image: torch.Tensor) -> Runs:
    """A network on one picture in onnxruntime."""
    feed = {"image": image.numpy()}
    return work(lambda: session.run(None, feed))


def folding(turns: int, size: int, variants: Sequence[Variant] = VARIANTS) -> dict[str, Any]:
    """Every FastViT with its training branches and folded, in torch (contiguous and channels last) and onnxruntime."""
    image = torch.randn(1, 3, size, size)
    rows = {}
    for variant in variants:
        branched = build_backbone(variant).eval()
        folded = fold_backbone(branched)
        last = fold_backbone(branched).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        contenders = {
            "torch_branched": in_torch(branched, image),
            "torch_folded": in_torch(folded, image),
            "torch_folded_channels_last": in_torch(last, image.to(memory_format=torch.channels_last)),
            "onnxruntime_branched": in_onnxruntime(opened(branched, size), image),
            "onnxruntime_folded": in_onnxruntime(opened(folded, size), image),
        }
        row = medians(contenders, turns, runs=3)
        rows[variant] = row | {
            "torch_speed_up": row["torch_branched"] / row["torch_folded"],
            "onnxruntime_speed_up": row["onnxruntime_branched"] / row["onnxruntime_folded"],
            "parameters_branched": sum(p.numel() for p in branched.parameters()),
            "parameters_folded": sum(p.numel() for p in folded.parameters()),
        }
        _log.info("folding %s: %s", variant, rows[variant])
    return {"size_px": size, "variants": rows}


class MixedBlock(nn.Module):
    """A MetaFormer block with RepMixer as it is deployed: one depthwise convolution without skip or norm."""

    def __init__(self, block: MetaFormerBlock, channels: int) -> None:
        super().__init__()
        self.mixer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm, self.mlp, self.scale, self.skip = block.norm2, block.mlp, block.layer_scale2, block.res_scale2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mixer(x)
        return self.skip(x) + self.scale(self.mlp(self.norm(x)))


def metaformer(mixer: str) -> nn.Module:
    """PoolFormer-S12 (Yu et al., CVPR 2022), with pooling or with RepMixer as token mixer ("pooling", "repmixer")."""
    model = build_folded("poolformer_s12")
    if mixer == "repmixer":
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, MetaFormerBlock):
                    channels = int(child.mlp.fc1.in_channels)  # pyright: ignore[reportArgumentType]
                    setattr(parent, name, MixedBlock(child, channels).eval())
    return model


def mixing(turns: int, sizes: Sequence[int] = MIXER_SIZES) -> dict[str, Any]:
    """RepMixer against pooling in the same MetaFormer-S12, over picture sizes; what share of time it saves."""
    models = {name: metaformer(name) for name in ("pooling", "repmixer")}
    sessions = {name: opened(model, 224, any_size=True) for name, model in models.items()}
    rows = {}
    for size in sizes:
        image = torch.randn(1, 3, size, size)
        contenders = {f"torch_{name}": in_torch(model, image) for name, model in models.items()}
        contenders |= {f"onnxruntime_{name}": in_onnxruntime(session, image) for name, session in sessions.items()}
        row = medians(contenders, turns if size < 500 else max(3, turns // 3), runs=1)
        for engine in ("torch", "onnxruntime"):
            row[f"{engine}_saves"] = 1.0 - row[f"{engine}_repmixer"] / row[f"{engine}_pooling"]
        rows[str(size)] = row
        _log.info("mixing at %d px: %s", size, row)
    return {"sizes": rows, "paper_saves": PAPER["mixer_saves"]}


def branches(turns: int, size: int, variants: Sequence[Variant] = TRAINED, batch: int = 4) -> dict[str, Any]:
    """What the train-time branches of stem, patch embeddings and projections add to a training step."""
    images = torch.randn(batch, 3, size, size)
    rows = {}
    for variant in variants:
        full = build_backbone(variant).train()
        plain = drop_branches(build_backbone(variant)).train()
        contenders = {"with": work(partial(_step, full, images)), "without": work(partial(_step, plain, images))}
        row = medians(contenders, turns, runs=1)
        rows[variant] = row | {"costs": row["with"] / row["without"] - 1.0}
        _log.info("branches of %s: %s", variant, rows[variant])
    return {"size_px": size, "batch": batch, "variants": rows, "paper_costs": PAPER["branches_cost"]}


def _step(model: FastVit, images: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(images).square().mean().backward()


def backbones(turns: int, size: int, names: Sequence[str] = PEERS) -> dict[str, Any]:
    """FastViT-T8 and other backbones, folded, in onnxruntime; with the ablations' errors where measured."""
    image = torch.randn(1, 3, size, size)
    contenders = {name: in_onnxruntime(opened(build_folded(name), size), image) for name in names}
    rows: dict[str, Any] = {name: {"onnxruntime": value} for name, value in medians(contenders, turns, 3).items()}
    ablations = Path("eval/results/ablations.json")
    arms = json.loads(ablations.read_text())["arms"] if ablations.is_file() else {}
    for name, row in rows.items():
        if name in arms:
            row["ablation_pa_mpjpe_mm"] = arms[name]["pa_mpjpe_mm"]
    return {"size_px": size, "networks": rows}


QUESTIONS = ("branches", "mixing", "folding", "backbones")


def table(result: dict[str, Any]) -> str:
    """Markdown tables of what was measured."""
    lines: list[str] = []
    if "folding" in result:
        lines += [f"Folding, {result['folding']['size_px']} px, ms of one thread", ""]
        columns = ("torch_branched", "torch_folded", "torch_folded_channels_last", "torch_speed_up")
        columns += ("onnxruntime_branched", "onnxruntime_folded", "onnxruntime_speed_up")
        lines += _rows("variant", columns, result["folding"]["variants"])
    if "mixing" in result:
        lines += ["", "Pooling and RepMixer in a MetaFormer-S12, ms of one thread, and what share RepMixer saves", ""]
        columns = ("torch_pooling", "torch_repmixer", "torch_saves")
        columns += ("onnxruntime_pooling", "onnxruntime_repmixer", "onnxruntime_saves")
        lines += _rows("px", columns, result["mixing"]["sizes"])
    if "branches" in result:
        facts = result["branches"]
        lines += ["", f"Training steps with and without branches, {facts['batch']} x {facts['size_px']} px, ms", ""]
        lines += _rows("variant", ("with", "without", "costs"), facts["variants"])
    if "backbones" in result:
        lines += ["", f"Folded backbones in onnxruntime, {result['backbones']['size_px']} px, ms of one thread", ""]
        lines += _rows("network", ("onnxruntime", "ablation_pa_mpjpe_mm"), result["backbones"]["networks"])
    return "\n".join(lines).strip()


def _rows(title: str, columns: Sequence[str], rows: dict[str, dict[str, float]]) -> list[str]:
    titles = [title, *(column.replace("_", " ") for column in columns)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        cells = [f"{row[c]:.3g}" if c in row else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """A picture of the speed-ups and savings, beside the paper's numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    variants = result["folding"]["variants"]
    places = np.arange(len(variants))
    for offset, engine in ((-0.2, "torch"), (0.2, "onnxruntime")):
        first.bar(places + offset, [row[f"{engine}_speed_up"] for row in variants.values()], 0.4, label=engine)
    first.axhline(1.0, color="gray", linewidth=0.8)
    first.set(title="folding: times as fast", xticks=places, xticklabels=list(variants))
    sizes = [int(size) for size in result["mixing"]["sizes"]]
    for engine in ("torch", "onnxruntime"):
        saves = [100 * row[f"{engine}_saves"] for row in result["mixing"]["sizes"].values()]
        second.plot(sizes, saves, "o-", label=engine)
    paper = {int(size): 100 * share for size, share in result["mixing"]["paper_saves"].items()}
    second.plot(list(paper), list(paper.values()), "k*", label="paper, iPhone")
    second.set(title="RepMixer for pooling: % saved", xlabel="px")
    rows = result["branches"]["variants"]
    third.bar(list(rows), [100 * row["costs"] for row in rows.values()], label="here, CPU")
    paper_costs = result["branches"]["paper_costs"]
    third.plot(list(paper_costs), [100 * share for share in paper_costs.values()], "k*", label="paper, GPU")
    third.set(title="branches: % more training time")
    for axes in (first, second, third):
        axes.legend(fontsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Answer one or all questions; answers of other questions stay in the result file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("questions", nargs="+", choices=[*QUESTIONS, "all"])
    parser.add_argument("--size", type=int, default=128, help="px, all but mixing (%(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="turns that count (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="result file, .json; table and picture beside it")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("handmesh").setLevel(logging.INFO)
    torch.set_num_threads(1)
    asked = QUESTIONS if "all" in options.questions else options.questions
    result = json.loads(options.out.read_text()) if options.out.is_file() else {}
    answer: dict[str, Callable[[], dict[str, Any]]] = {
        "folding": partial(folding, options.turns, options.size),
        "mixing": partial(mixing, options.turns),
        "branches": partial(branches, options.turns, options.size),
        "backbones": partial(backbones, options.turns, options.size),
    }
    for question in asked:
        result[question] = answer[question]()
        result.pop("stamp", None)
        write_result(options.out, result)
        with written_whole(options.out.with_suffix(".md")) as temporary:
            temporary.write_text(table(result) + "\n")
    if all(question in result for question in QUESTIONS):
        draw(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
