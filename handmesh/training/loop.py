"""`handmesh train`: mixed batches, EMA, checkpoints, exact resume; one process or several under torchrun."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.mixture import BatchStream, HandDataset, Mixture, load_pool
from handmesh.datasets.photos import PhotoDataset
from handmesh.datasets.sample import Batch
from handmesh.evaluation.validation import fixed_batch, measure
from handmesh.model.deploy import load_torch_network
from handmesh.model.head import TokensHead
from handmesh.model.regressor import HandRegressor, save_network
from handmesh.model.unfold import unfold
from handmesh.training.config import PRESETS, TrainConfig
from handmesh.training.cpu_kernels import accelerate
from handmesh.training.cpu_ops import reuse_freed_memory
from handmesh.training.curves import append_row
from handmesh.training.distillation import Teachers, distillation_loss
from handmesh.training.losses import training_loss

_log = logging.getLogger(__name__)

CALIBRATION_BATCHES = 16  # that set the batch norms of a network that starts from folded weights


class Ema:
    """Exponential moving average of a network's floating-point state; its horizon grows with the first steps."""

    def __init__(self, network: HandRegressor, decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: HandRegressor, step: int) -> None:
        """Move towards `network` after optimiser step `step` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[key].lerp_(value, weight)
            else:
                self.state[key].copy_(value)


class Trainer:
    """One training run in a folder; `run()` goes on from `last.pt` if it is there."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        datasets: Mixture,
        background_folders: Sequence[Path],
        validation: dict[str, HandDataset],
        *,
        initial: Sequence[Path] = (),
        pretrained: bool = False,
        teachers: Teachers | None = None,
        workers: int = 0,
    ) -> None:
        self.config, self.folder, self.teachers = config, folder, teachers
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        torch.manual_seed(config.seed)
        self.per_step = config.batch_size * self.world
        self.steps = config.samples // self.per_step
        self.step = 0
        size = config.network.input_size
        self.stream = BatchStream(
            datasets,
            load_pool(background_folders),
            batch_size=config.batch_size,
            size=size,
            augment=config.augment,
            seed=config.seed,
            rank=self.rank,
            steps=self.steps,
        )
        self.network = HandRegressor(config.network, pretrained=pretrained)
        for path in initial:
            self._start_from(path)
        self.ema = Ema(self.network, config.ema_decay)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.network, config.weight_decay), config.learning_rate)
        if (folder / "last.pt").is_file():
            self._restore(torch.load(folder / "last.pt", map_location="cpu", weights_only=True))
        fast = accelerate(self.network)
        self.model: nn.Module = DistributedDataParallel(fast) if self.world > 1 else fast
        self.validation = {name: fixed_batch(dataset, size) for name, dataset in validation.items()}
        self.workers = workers

    def run(self, *, minutes: float = float("inf"), save_every_s: float = 180, measure_every: int = 50_000) -> bool:
        """Train until done (True) or the time is up (False). Checkpoints by time, measures by samples."""
        started = saved = time.monotonic()
        measured = self.seen // measure_every
        sums: dict[str, float] = {}
        mark, mark_step = started, self.step
        for batch in self._batches():
            terms = self._train_step(batch)
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value
            self.step += 1
            now = time.monotonic()
            if self.step % 50 == 0:
                count = self.step - mark_step
                row = {key: value / count for key, value in sums.items()}
                self._record("log.csv", {"rate": count * self.per_step / (now - mark), **row})
                sums, mark, mark_step = {}, now, self.step
            time_up, save = self._agree(now - started > minutes * 60, now - saved > save_every_s)
            if save or time_up or self.step == self.steps:
                self._save()
                saved = now
            if self.seen // measure_every > measured or time_up or self.step == self.steps:
                measured = self.seen // measure_every
                self._measure()
            if time_up:
                break
        return self.step >= self.steps

    def _start_from(self, path: Path) -> None:
        """Take over a checkpoint, or published weights, whose batch norms are set anew on the first batches."""
        if path.suffix != ".onnx":
            load_initial(self.network, path)
            return
        crops = (self.stream[step].crops for step in range(min(CALIBRATION_BATCHES, len(self.stream))))
        network = unfold(load_torch_network(path), crops)
        if network.config != self.config.network:
            raise ValueError(f"{path} holds {network.config}, this run trains {self.config.network}")
        self.network = network

    @property
    def seen(self) -> int:
        """Samples seen by all processes."""
        return self.step * self.per_step

    def _batches(self) -> Iterator[Batch]:
        steps = range(self.step, self.steps)
        yield from DataLoader(self.stream, batch_size=None, sampler=steps, num_workers=self.workers)

    def _train_step(self, batch: Batch) -> dict[str, float]:
        torch.manual_seed(hash((self.config.seed, self.rank, self.step)))  # stochastic depth, the same after a resume
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(self.seen)
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = self.model(batch.crops)
        loss, terms = training_loss(prediction, batch, self.network.hand_model, self.config.loss)
        if self.teachers is not None:
            lesson = self.teachers.teach(batch.crops)
            distance, terms["teacher"] = distillation_loss(prediction, lesson, batch, self.config.loss)
            loss = loss + self.config.distillation * distance
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}: {terms}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.rank == 0:
            self.ema.update(self.network, self.step)
        return {
            "loss": loss.item(),
            "gradient": norm.item(),
            **{key: value.item() for key, value in terms.items()},
        }

    def _agree(self, *wishes: bool) -> tuple[bool, ...]:
        """What rank 0 wishes, asked every tenth step: clocks differ, and all processes must do the same at each step."""
        if self.world == 1:
            return wishes
        if self.step % 10:
            return (False,) * len(wishes)
        flags = torch.tensor(wishes, dtype=torch.float32)
        dist.broadcast(flags, 0)
        return tuple(bool(flag) for flag in flags)

    def ema_network(self) -> HandRegressor:
        """A stock network with the averaged weights."""
        network = HandRegressor(self.config.network)
        network.load_state_dict(self.ema.state)
        return network.eval()

    def _measure(self) -> None:
        if self.rank == 0 and self.validation:
            network = self.ema_network()
            for name, batch in self.validation.items():
                self._record(f"{name}.csv", measure(network, batch))
            save_network(network, self.folder / "ema.pt", seen=self.seen)
        if self.world > 1:
            dist.barrier()

    def _record(self, name: str, row: dict[str, float]) -> None:
        if self.rank:
            return
        row = {"seen": self.seen, **row}
        append_row(self.folder / name, row)
        _log.info("%s %s", name, " ".join(f"{key}={value:.4g}" for key, value in row.items()))

    def _save(self) -> None:
        if self.rank == 0:
            save_network(
                self.network,
                self.folder / "last.pt",
                ema=self.ema.state,
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                per_step=self.per_step,
            )
        if self.world > 1:
            dist.barrier()

    def _restore(self, stored: dict[str, Any]) -> None:
        if stored["per_step"] != self.per_step:
            raise ValueError(
                f"{self.folder / 'last.pt'} was trained with {stored['per_step']} samples a step, this run has "
                f"{self.per_step}: resume with the same number of processes and batch size"
            )
        self.network.load_state_dict(stored["network"])
        self.ema.state = stored["ema"]
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step = stored["step"]


def load_initial(network: HandRegressor, path: Path) -> None:
    """Start from a checkpoint of a network of the same config, or of its parts: keys `backbone` and `lift`."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint to start from at {path}")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if "network" in stored:
        network.load_state_dict(stored["network"])
    elif "backbone" in stored:
        network.backbone.load_state_dict(stored["backbone"])
    elif "lift" in stored and isinstance(network.head, TokensHead):
        network.head.lift.load_state_dict(stored["lift"])
    else:
        raise ValueError(f"{path} holds no network, backbone or lifter that fits; it has {sorted(stored)}")


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and "gamma" not in name]
    plain = [p for name, p in named if not (p.ndim > 1 and "gamma" not in name)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join the processes that torchrun started, each pinned to its core on a CPU; yields the local rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0
        return
    local = int(os.environ["LOCAL_RANK"])
    if hasattr(os, "sched_setaffinity") and not torch.cuda.is_available():
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // int(os.environ["LOCAL_WORLD_SIZE"]))
        os.sched_setaffinity(0, cores[local * share : (local + 1) * share] or cores)
        torch.set_num_threads(share)
    dist.init_process_group("gloo")
    try:
        yield local
    finally:
        dist.destroy_process_group()


def _write_run_facts(folder: Path, config: TrainConfig, arguments: dict[str, Any]) -> None:
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "config": asdict(config),
        "arguments": {key: str(value) for key, value in arguments.items()},
        "commit": git.stdout.strip() or None,
        "torch": torch.__version__,
    }
    (folder / "run.json").write_text(json.dumps(facts, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `handmesh train`."""
    parser = argparse.ArgumentParser(prog="handmesh train", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="fast")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints and curves; resumes if used before"
    )
    parser.add_argument("--synthetic", type=Path, help="folder in FreiHAND's layout")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="folders with labels.json")
    parser.add_argument("--distorted", nargs="*", default=[], help="names of photo folders without usable 3D")
    parser.add_argument("--validation-photos", type=Path, nargs="*", default=[])
    parser.add_argument("--backgrounds", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--init",
        type=Path,
        nargs="*",
        default=[],
        help="checkpoints of a network, a backbone or a lifter, or an exported .onnx",
    )
    parser.add_argument("--pretrained", action="store_true", help="start from timm's ImageNet weights (needs the hub)")
    parser.add_argument("--teacher", type=Path, nargs="*", default=[], help="trained networks to learn from as well")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--decay", type=float)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, resumable, after this time")
    parser.add_argument("--workers", type=int, default=0, help="loader processes per training process")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    config = PRESETS[args.preset]
    given = {key: getattr(args, key) for key in ("samples", "learning_rate", "decay") if getattr(args, key) is not None}
    config = replace(config, **given)
    datasets: list[HandDataset] = []
    shares: list[float] = []
    validation: dict[str, HandDataset] = {}
    if args.synthetic:
        datasets.append(FreiHandDataset(args.synthetic, "training"))
        shares.append(config.synthetic_share)
        if (args.synthetic / "evaluation" / "rgb").is_dir():
            validation["synthetic"] = _Head(FreiHandDataset(args.synthetic, "evaluation"), 500)
    if args.photos:
        datasets.append(PhotoDataset(args.photos, distorted=frozenset(args.distorted)))
        shares.append(config.photo_share)
    if args.validation_photos:
        validation["photos"] = PhotoDataset(args.validation_photos)
    if not datasets:
        parser.error("give --synthetic or --photos: there is nothing to train on")
    if len(datasets) == 1:
        shares = [config.synthetic_share + config.photo_share]

    reuse_freed_memory()
    with process_group():
        args.out.mkdir(parents=True, exist_ok=True)
        _write_run_facts(args.out, config, vars(args))
        trainer = Trainer(
            config,
            args.out,
            Mixture(datasets, shares),
            args.backgrounds,
            validation,
            initial=args.init,
            pretrained=args.pretrained,
            teachers=Teachers.load(args.teacher) if args.teacher else None,
            workers=args.workers,
        )
        trainer.run(minutes=args.minutes)


class _Head:
    """The first samples of a dataset."""

    def __init__(self, dataset: HandDataset, count: int) -> None:
        self.dataset, self.count = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


if __name__ == "__main__":
    main()
