"""The training loop: mixed batches, EMA, checkpoints, exact resume; one process or several under torchrun."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from handmesh.assets import HandModelArrays
from handmesh.datasets.augment import ImagePool
from handmesh.datasets.mixture import BatchStream, HandDataset, Mixture
from handmesh.datasets.sample import Batch
from handmesh.evaluation.validation import fixed_batch, measure
from handmesh.image_folders import load_images
from handmesh.model.deploy import network_from_onnx
from handmesh.model.grow import grow_from
from handmesh.model.head import TokensHead
from handmesh.model.regressor import HandRegressor, NetworkConfig, check_hand_model, read_checkpoint, save_network
from handmesh.model.unfold import unfold
from handmesh.training.config import TrainConfig
from handmesh.training.cpu_kernels import accelerate
from handmesh.training.curves import append_row, drop_rows_after
from handmesh.training.distillation import Teachers, distillation_loss
from handmesh.training.losses import training_loss
from handmesh.training.pictures import draw_curves, draw_overlays
from handmesh.training.processes import agree, leave_stopping, rank_and_world

_log = logging.getLogger(__name__)

_POOL_PX = 400  # longer side of the pictures that backgrounds and occluders are cut from

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
        network: HandRegressor | None = None,
        hand_model: HandModelArrays | None = None,
        teachers: Teachers | None = None,
        device: torch.device | None = None,
        workers: int = 0,
    ) -> None:
        """`network` is trained instead of one built from the config, on `device` (by default the CPU)."""
        self.config, self.folder, self.teachers = config, folder, teachers
        self.rank, self.world = rank_and_world()
        torch.manual_seed(config.seed)
        self.device = device or torch.device("cpu")
        self.per_step = config.batch_size * self.world
        self.steps = config.samples // self.per_step
        if self.steps == 0:
            raise ValueError(
                f"{config.samples} samples are less than one step of {config.batch_size} by {self.world} processes: "
                "train longer, or with smaller batches"
            )
        self.step = 0
        size = config.network.input_size
        self.stream: Dataset[Batch] = BatchStream(
            datasets,
            ImagePool(load_images(background_folders, _POOL_PX, also_held_out=False)),
            batch_size=config.batch_size,
            size=size,
            augment=config.augment,
            seed=config.seed,
            rank=self.rank,
            steps=self.steps,
        )
        last = folder / "last.pt"
        stored = read_checkpoint(last) if last.is_file() else None
        pretrained = config.pretrained and stored is None and not initial
        self.network = network or HandRegressor(config.network, hand_model, pretrained=pretrained)
        if stored is None:
            for path in initial:
                self._start_from(path, hand_model)
        elif initial and self.rank == 0:
            _log.info("%s is there, so the run goes on from it and not from --init", last)
        for module in (self.network, *(() if teachers is None else teachers.networks)):
            module.to(self.device)
        self.ema = Ema(self.network, config.ema_decay)
        groups = _parameter_groups(self.network, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, config.learning_rate, fused=True)
        self.recipe = {
            **asdict(config),
            "hands": [len(d) for d in datasets.datasets],
            "shares": list(datasets.shares),
            "teachers": 0 if teachers is None else len(teachers.networks),
        }
        if stored is not None:
            self._restore(stored)
        self.model: nn.Module = accelerate(self.network) if self.device.type == "cpu" else self.network
        if self.world > 1:
            self.model = DistributedDataParallel(self.model)
        self.validation = {name: fixed_batch(dataset, size) for name, dataset in validation.items()}
        self.workers = workers

    def run(
        self,
        *,
        minutes: float = float("inf"),
        save_every_s: float = 180,
        measure_every: int = 50_000,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until done (True), or until the time is up or ``stopped`` says so (False).

        Checkpoints by time, measures by samples.
        """
        started = saved = time.monotonic()
        measured = self.seen // measure_every
        sums: dict[str, float] = {}
        mark, mark_step = started, self.step
        if self.step == self.steps:  # stopped, perhaps, between its last checkpoint and its last measurement
            if self.rank == 0:
                for path in self.folder.glob("*.csv"):
                    if path.name != "log.csv":
                        drop_rows_after(path, self.seen - 1)
            self._measure()
        for batch in self._batches():
            terms = self._train_step(batch)
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value
            self.step += 1
            now = time.monotonic()
            if self.step % 50 == 0 or self.step == self.steps:
                count = self.step - mark_step
                row = {key: value / count for key, value in sums.items()}
                self._record("log.csv", {"rate": count * self.per_step / (now - mark), **row})
                sums, mark, mark_step = {}, now, self.step
            time_up, save, stop = agree(
                self.step, self.device, now - started > minutes * 60, now - saved > save_every_s, stopped()
            )
            if save or time_up or stop or self.step == self.steps:
                self._save()
                saved = now
            if self.seen // measure_every > measured or time_up or self.step == self.steps:
                measured = self.seen // measure_every
                self._measure()
            if time_up or stop:
                break
        if self.rank == 0:
            more = "" if self.step >= self.steps else "; the same command goes on"
            _log.info("%d of %d samples are seen%s", self.seen, self.config.samples, more)
        return self.step >= self.steps

    def _start_from(self, path: Path, hand_model: HandModelArrays | None) -> None:
        """Take over a checkpoint, or published weights, whose batch norms are set anew on the first batches."""
        if path.suffix != ".onnx":
            load_initial(self.network, path)
            return
        crops = (self.stream[step].crops for step in range(min(CALIBRATION_BATCHES, self.steps)))
        network = unfold(network_from_onnx(path, hand_model, of_any_hand=True), crops)
        wanted = self.config.network
        if network.config.head != wanted.head:
            raise ValueError(f"{path} holds {network.config}, this run trains {wanted}")
        _say_changes(path, network.config, wanted)
        _load_or_grow(self.network, network.state_dict(), grow=network.config.variant != wanted.variant)

    @property
    def seen(self) -> int:
        """Samples seen by all processes."""
        return self.step * self.per_step

    def _batches(self) -> Iterator[Batch]:
        steps = range(self.step, self.steps)
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            self.stream,
            None,
            sampler=steps,
            num_workers=self.workers,
            pin_memory=pinned,
            worker_init_fn=leave_stopping,
        )
        for batch in loader:
            yield Batch(*(column.to(self.device, non_blocking=True) for column in batch))

    def _train_step(self, batch: Batch) -> dict[str, float]:
        torch.manual_seed(hash((self.config.seed, self.rank, self.step)))  # stochastic depth, the same after a resume
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(self.seen)
        self.model.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
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

    def ema_network(self) -> HandRegressor:
        """A network with the averaged weights."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.ema.state)
        return network.eval()

    def _measure(self) -> None:
        if self.rank == 0:
            network = self.ema_network()
            for name, batch in self.validation.items():
                self._record(f"{name}.csv", measure(network, batch))
                draw_overlays(network, batch, self.folder / "overlays" / f"{name}_{self.seen:09d}.jpg")
            save_network(network, self.folder / "ema.pt", seen=self.seen)
            draw_curves(self.folder)
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
                seen=self.seen,
                step=self.step,
                per_step=self.per_step,
                world=self.world,
                recipe=self.recipe,
            )
        if self.world > 1:
            dist.barrier()

    def _restore(self, stored: dict[str, Any]) -> None:
        begun = stored["per_step"], stored.get("world", self.world)
        if begun != (self.per_step, self.world):
            raise ValueError(
                f"{self.folder / 'last.pt'} was trained with {begun[0]} samples a step by {begun[1]} processes, this "
                f"run has {self.per_step} by {self.world}: resume with the same number of processes and batch size"
            )
        network = NetworkConfig(**stored["config"])
        if network != self.network.config:
            raise ValueError(
                f"{self.folder / 'last.pt'} holds {network}, this run trains {self.network.config}: resume with the "
                "same options, or start in another folder with --init"
            )
        check_hand_model(self.network, stored.get("vertices"), self.folder / "last.pt")
        self.network.load_state_dict(stored["network"])
        self.ema.state = {key: value.to(self.device) for key, value in stored["ema"].items()}
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step = stored["step"]
        if self.step > self.steps:
            raise ValueError(
                f"{self.folder / 'last.pt'} has seen {self.seen} samples already, more than the {self.config.samples} "
                "of this run: ask for more, or start in another folder"
            )
        if self.rank == 0:
            before = {"teachers": self.recipe["teachers"], **stored.get("recipe", self.recipe)}
            for name in (name for name, value in self.recipe.items() if before.get(name) != value):
                _log.warning("goes on with another %s: %s instead of %s", name, self.recipe[name], before.get(name))
            for path in self.folder.glob("*.csv"):
                drop_rows_after(path, self.seen)


def load_initial(network: HandRegressor, path: Path) -> None:
    """Start from a checkpoint of a network, or of its parts: keys `backbone` and `lift`. Smaller variants grow.

    Raises FileNotFoundError or ValueError as `read_checkpoint`, and ValueError where the checkpoint does not fit.
    """
    stored = read_checkpoint(path)
    parts: dict[str, nn.Module] = {"network": network, "backbone": network.backbone}
    if isinstance(network.head, TokensHead):
        parts["lift"] = network.head.lift
    name = next((name for name in parts if name in stored), None)
    if name is None:
        raise ValueError(f"{path} holds no network, backbone or lifter that fits; it has {sorted(stored)}")
    config = NetworkConfig(**stored["config"]) if name == "network" else network.config
    _say_changes(path, config, network.config)
    try:
        _load_or_grow(parts[name], stored[name], grow=config.variant != network.config.variant)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the {name} of {path} does not fit {network.config}: {error}") from error


def _say_changes(path: Path, stored: NetworkConfig, wanted: NetworkConfig) -> None:
    if stored != wanted:
        _log.info("%s holds %s, and goes on as %s", path, stored, wanted)


def _load_or_grow(module: nn.Module, state: Mapping[str, torch.Tensor], *, grow: bool) -> None:
    if grow:
        grow_from(state, module)
    else:
        module.load_state_dict(state)


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and "gamma" not in name]
    plain = [p for name, p in named if not (p.ndim > 1 and "gamma" not in name)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
