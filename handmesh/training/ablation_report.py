"""Table and plot of the ablations that have been run: errors, noise between seeds, and time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.atomic import written_whole
from handmesh.evaluation.report import write_result
from handmesh.training.ablations import ABLATIONS, Protocol, parameters, time_inference, time_training

TIMED_PX = 224  # crop size of inference times: at 64 px calling the runtime takes as long as the network
MEASURES = ("2d", "pa_mpjpe_mm", "pa_mpvpe_mm")  # the last two of sets that know the true parameters
_T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}  # Student's t, two-sided 95 %, by degrees of freedom


@dataclass(frozen=True)
class ArmResult:
    """What is known of an arm: `errors` are means over `seeds`, `spread` their standard deviations (0 for one)."""

    arm: str
    seeds: int
    errors: dict[str, float]
    spread: dict[str, float]


def read_results(protocol: Protocol) -> dict[str, ArmResult]:
    """The finished arms of a folder.

    Raises:
        FileNotFoundError: none is finished.
        ValueError: one was run under another protocol.
    """
    wanted = json.loads(json.dumps(protocol.describe()))
    by_arm: dict[str, list[dict[str, float]]] = {}
    for file in sorted(protocol.folder.glob("*_seed*/result.json")):
        stored = json.loads(file.read_text())
        if stored["protocol"] != wanted:
            raise ValueError(f"{file} was made with {stored['protocol']}, not {wanted}")
        by_arm.setdefault(stored["arm"], []).append(stored["errors"])
    if not by_arm:
        raise FileNotFoundError(f"no finished arm in {protocol.folder}: run an ablation first")
    return {arm: _summarise(arm, rows) for arm, rows in by_arm.items()}


def _summarise(arm: str, rows: list[dict[str, float]]) -> ArmResult:
    columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in MEASURES}
    spread = {name: float(values.std(ddof=1)) if len(values) > 1 else 0.0 for name, values in columns.items()}
    return ArmResult(arm, len(rows), {name: float(values.mean()) for name, values in columns.items()}, spread)


def noise(results: dict[str, ArmResult]) -> dict[str, float] | None:
    """Differences between single runs smaller than this are noise: t * sqrt(2) * s of the arm with the most seeds.

    None where no arm has two seeds.
    """
    arm = max(results.values(), key=lambda result: result.seeds)
    if arm.seeds < 2:
        return None
    factor = _T_95.get(arm.seeds - 1, 2.5) * math.sqrt(2)
    return {name: factor * arm.spread[name] for name in MEASURES}


def write_report(protocol: Protocol, folder: Path, *, timed: bool = True) -> None:
    """Write `ablations.json`, `ablations.md` and `ablations.png`; without `timed`, errors against parameters."""
    results = read_results(protocol)
    arms = list(results)
    facts: dict[str, Any] = {
        "protocol": protocol.describe(),
        "inference_px": TIMED_PX,
        "noise": noise(results),
        "arms": {
            arm: {
                "seeds": result.seeds,
                **result.errors,
                "spread": result.spread,
                "backbone_parameters": parameters(arm),
            }
            for arm, result in results.items()
        },
    }
    for name, values in (measure_times(arms, protocol) if timed else {}).items():
        for arm in arms:
            facts["arms"][arm][name] = values[arm]
    write_result(folder / "ablations.json", facts)
    with written_whole(folder / "ablations.md") as temporary:
        temporary.write_text(table(facts, protocol.size))
    _plot(facts, protocol.size, folder / "ablations.png")


def measure_times(arms: Sequence[str], protocol: Protocol) -> dict[str, dict[str, float]]:
    """`training_step_ms` and `inference_ms` by arm; times that a folder has for all these arms are kept."""
    file = protocol.folder / "times.json"
    if file.is_file():
        stored = json.loads(file.read_text())
        if all(set(arms) <= values.keys() for values in stored.values()):
            return stored
    times = {
        "training_step_ms": time_training(arms, protocol),
        "inference_ms": time_inference(arms, TIMED_PX, protocol.folder / "graphs"),
    }
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(times, indent=1))
    return times


def table(facts: dict[str, Any], size: int) -> str:
    """The result as Markdown: one table of arms, one line for every question."""
    noises, arms = facts["noise"], facts["arms"]
    lines = [
        f"| backbone | seeds | 2D error | PA-MPJPE / PA-MPVPE mm | parameters | training step ms, {size} px | "
        f"inference ms, {TIMED_PX} px |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, row in sorted(arms.items(), key=lambda item: item[1]["2d"]):
        lines.append(
            f"| {arm} | {row['seeds']} | {row['2d']:.4f} | {row['pa_mpjpe_mm']:.2f} / {row['pa_mpvpe_mm']:.2f} | "
            f"{row['backbone_parameters'] / 1e6:.1f} M | {_ms(row, 'training_step_ms', 0)} | "
            f"{_ms(row, 'inference_ms', 1)} |"
        )
    known = "unknown, as every arm has one seed"
    if noises is not None:
        known = f"2D {noises['2d']:.4f}, PA-MPJPE {noises['pa_mpjpe_mm']:.2f} mm (95 %, two single runs)"
    lines += ["", f"Noise: {known}.", ""]
    for name, members in ABLATIONS.items():
        if name != "backbones":
            lines += _answers(name, [arm for arm in members if arm in arms], facts)
    return "\n".join(lines) + "\n"


def _answers(name: str, members: Sequence[str], facts: dict[str, Any]) -> list[str]:
    if len(members) < 2:
        return []
    control = facts["arms"][members[0]]
    lines = []
    for arm in members[1:]:
        row = facts["arms"][arm]
        change = row["2d"] - control["2d"]
        limit = math.inf if facts["noise"] is None else facts["noise"]["2d"]
        verdict = "within noise" if abs(change) < limit else "worse" if change > 0 else "better"
        line = (
            f"- {name}: {arm} against {members[0]}: 2D error {change:+.4f} ({verdict}), PA-MPJPE "
            f"{row['pa_mpjpe_mm'] - control['pa_mpjpe_mm']:+.2f} mm"
        )
        for key, label in (("training_step_ms", "training step"), ("inference_ms", "inference")):
            if key in row:
                line += f", {label} x{row[key] / control[key]:.2f}"
        lines.append(line)
    return lines


def _ms(row: dict[str, Any], key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else "not timed"


def _plot(facts: dict[str, Any], size: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.add_subplot()
    half = None if facts["noise"] is None else facts["noise"]["2d"] / 2
    timed = all("inference_ms" in row for row in facts["arms"].values())
    for arm, row in facts["arms"].items():
        x = row["inference_ms"] if timed else row["backbone_parameters"] / 1e6
        ours = arm.startswith("fastvit")
        axes.errorbar(
            x,
            row["2d"],
            yerr=half,
            fmt="o" if ours else "s",
            color="tab:blue" if ours else "tab:orange",
            elinewidth=0.8,
            capsize=2,
        )
        axes.annotate(arm, (x, row["2d"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    crop = f"one {TIMED_PX} px crop to parameters, onnxruntime, one thread, CPU ms"
    axes.set_xlabel(crop if timed else "parameters of the backbone, millions")
    axes.set_ylabel("2D keypoint error, share of the box")
    axes.set_title(f"Same head, data and budget: {facts['protocol']['samples']} samples from scratch at {size} px")
    axes.grid(alpha=0.3)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
