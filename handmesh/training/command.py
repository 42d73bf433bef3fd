"""`handmesh train`: from options and data folders to a run in a folder; one process or several under torchrun."""

from __future__ import annotations

import argparse
import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from torch.utils.data import ConcatDataset, Dataset, Subset

from handmesh.assets import HandModelArrays, load_hand_model
from handmesh.atomic import written_whole
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.mixture import HandDataset, Mixture
from handmesh.datasets.photos import PhotoDataset
from handmesh.datasets.sample import HandSample
from handmesh.evaluation.report import git, stamp
from handmesh.image_folders import HELD_OUT_PERCENT
from handmesh.mistakes import stop_asked
from handmesh.model.backbone import ACTIVATIONS, VARIANTS
from handmesh.model.head import HEADS
from handmesh.training.config import PRESETS, TrainConfig
from handmesh.training.cpu_ops import reuse_freed_memory
from handmesh.training.distillation import Teachers
from handmesh.training.loop import Trainer
from handmesh.training.processes import process_group

_VALIDATION_HANDS = 500  # of an evaluation split, measured during training

_NETWORK_OPTIONS = {"variant": "variant", "head": "head", "activation": "activation", "size": "input_size"}
_CONFIG_OPTIONS = ("batch_size", "learning_rate", "decay", "epochs", "pretrained", "seed")


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is measured on; `main` is the data set that epochs count."""

    mixture: Mixture
    main: int
    validation: dict[str, HandDataset]

    @property
    def samples_an_epoch(self) -> float:
        return len(self.mixture.datasets[self.main]) / self.mixture.shares[self.main]


def open_data(options: argparse.Namespace, config: TrainConfig, mano: HandModelArrays | None = None) -> RunData:
    """Open the data sets that the options name, with MANO's parameters if the network poses MANO.

    Raises what their readers raise.
    """
    datasets: dict[str, HandDataset] = {}
    validation: dict[str, HandDataset] = {}
    folders: dict[str, list[Path]] = {
        "freihand": [] if options.freihand is None else [options.freihand],
        "synthetic": options.synthetic,
    }
    for name, roots in folders.items():
        if roots:
            sets = [FreiHandDataset(root, "training", mano) for root in roots]
            datasets[name] = ConcatDataset[HandSample](cast("list[Dataset[HandSample]]", sets))
        measured = next((root for root in roots if _has_evaluation(root)), None)
        if measured is not None:
            hands = FreiHandDataset(measured, "evaluation", mano)
            first = range(min(_VALIDATION_HANDS, len(hands)))
            validation[name] = Subset[HandSample](cast("Dataset[HandSample]", hands), first)
    if options.photos:
        datasets["photo"] = PhotoDataset(options.photos, distorted=frozenset(options.distorted), cut_out=True)
    if options.validation_photos:
        validation["photos"] = PhotoDataset(options.validation_photos)
    shares = config.shares({name: getattr(config, f"{name}_share") for name in datasets})
    return RunData(Mixture(list(datasets.values()), shares), 0, validation)


def _has_evaluation(root: Path) -> bool:
    return any((root / f"evaluation_{file}").is_file() for file in ("xyz.json", "labels.npz"))


def configure(options: argparse.Namespace) -> TrainConfig:
    """The preset with what the options change; its length in epochs is not yet counted in samples."""
    config = PRESETS[options.preset]
    network = {field: getattr(options, name) for name, field in _NETWORK_OPTIONS.items()}
    given = {name: getattr(options, name) for name in _CONFIG_OPTIONS}
    network, given = ({k: v for k, v in values.items() if v is not None} for values in (network, given))
    return replace(config, network=replace(config.network, **network), **given)


def write_run_facts(folder: Path, config: TrainConfig, options: argparse.Namespace) -> None:
    """Write `run.json` (config, options, commit, machine; one entry per start) and changes that git has not."""
    file = folder / "run.json"
    starts = json.loads(file.read_text())["starts"] if file.is_file() else []
    starts.append({"arguments": {key: str(value) for key, value in vars(options).items()}, **stamp()})
    diff = git("diff", "HEAD")
    if diff:
        starts[-1]["changes"] = f"changes_{len(starts)}.patch"
        with written_whole(folder / starts[-1]["changes"]) as temporary:
            temporary.write_text(diff)
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps({"config": asdict(config), "starts": starts}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="handmesh train", description=__doc__)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="fast")
    add("--out", type=Path, required=True, help="folder for checkpoints and curves; resumes if used before")
    data = parser.add_argument_group("data")
    data.add_argument("--freihand", type=Path, help="the FreiHAND archive, or another in its layout, of right hands")
    data.add_argument(
        "--synthetic",
        type=Path,
        nargs="*",
        default=[],
        help="sets that `handmesh data synthesize` rendered; the first evaluation split among them measures",
    )
    data.add_argument("--photos", type=Path, nargs="*", default=[], help="folders with labels.json")
    data.add_argument("--distorted", nargs="*", default=[], help="names of photo folders whose photos were stretched")
    data.add_argument("--validation-photos", type=Path, nargs="*", default=[])
    data.add_argument(
        "--backgrounds",
        type=Path,
        nargs="*",
        default=[],
        help=f"pictures without hands, of which {HELD_OUT_PERCENT} percent, by name, are kept for tests",
    )
    start = parser.add_argument_group("start")
    start.add_argument(
        "--init",
        type=Path,
        nargs="*",
        default=[],
        help="checkpoints of a network (of a smaller variant, too), a backbone or a lifter, or exported .onnx",
    )
    start.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="timm's ImageNet weights, from a model hub (the freihand presets ask for them; --init replaces them)",
    )
    start.add_argument("--teacher", type=Path, nargs="*", default=[], help="trained networks to learn from as well")
    start.add_argument("--hand-model", type=Path, help="MANO_RIGHT.pkl or .npz instead of the embedded open hand")
    change = parser.add_argument_group("changes of the preset")
    change.add_argument("--variant", choices=VARIANTS)
    change.add_argument("--head", choices=HEADS, help="global: the FastViT paper's; tokens: ours")
    change.add_argument("--activation", choices=ACTIVATIONS, help="of the backbone; gelu: the FastViT paper's")
    change.add_argument("--size", type=int, help="crop size in px")
    length = change.add_mutually_exclusive_group()
    length.add_argument("--samples", type=int, help="length of the run")
    length.add_argument("--epochs", type=float, help="length in passes over the first of the data sets given")
    change.add_argument("--batch-size", type=int, help="per process")
    change.add_argument("--learning-rate", type=float)
    change.add_argument("--decay", type=float, help="last share of the run, over which the rate falls to zero")
    change.add_argument("--seed", type=int)
    add("--minutes", type=float, default=float("inf"), help="stop, resumable, after this time")
    add("--measure-every", type=int, default=50_000, help="samples between validations")
    add("--workers", type=int, default=0, help="loader processes per training process; 0: it loads by itself")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `handmesh train`. A user's mistake raises ValueError, FileNotFoundError or ConnectionError."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.freihand is None and not options.synthetic and not options.photos:
        parser.error("give --freihand, --synthetic or --photos: there is nothing to train on")
    if options.measure_every < 1:
        parser.error("--measure-every must be at least 1")
    if options.workers < 0 or not options.minutes >= 0:
        parser.error("--workers and --minutes must be at least 0")
    if options.distorted and not options.photos:
        parser.error("--distorted names folders of --photos: give them, too")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    _train(options)


def _train(options: argparse.Namespace) -> None:
    config = configure(options)
    hand_model = None if options.hand_model is None else load_hand_model(options.hand_model)
    data = open_data(options, config, hand_model)
    if options.samples is not None:
        config = config.lasting(options.samples)
    elif config.epochs is not None:
        config = config.lasting(round(config.epochs * data.samples_an_epoch))
    reuse_freed_memory()
    with process_group() as device:
        options.out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(
            config,
            options.out,
            data.mixture,
            options.backgrounds,
            data.validation,
            initial=options.init,
            hand_model=hand_model,
            teachers=Teachers.load(options.teacher, hand_model) if options.teacher else None,
            device=device,
            workers=options.workers,
        )
        if trainer.rank == 0:
            write_run_facts(options.out, config, options)
        with stop_asked(signal.SIGINT, signal.SIGTERM) as stopped:
            done = trainer.run(minutes=options.minutes, measure_every=options.measure_every, stopped=stopped)
            if stopped() and not done:
                raise KeyboardInterrupt


if __name__ == "__main__":
    main()
