"""Ablations of the FastViT paper on hands: the same head, data, samples and schedule for every backbone.

An arm is a backbone (`handmesh.model.ablated`) and a seed. Its run resumes where it stopped, so a table grows arm by
arm. The crops are cut once and read by every arm: all see the same images in the same order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from handmesh.atomic import written_whole
from handmesh.datasets.augment import AugmentConfig, ImagePool
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.freihand_files import FreiHandSplit
from handmesh.datasets.mixture import BatchStream, Mixture
from handmesh.datasets.sample import Batch
from handmesh.evaluation.backbones import PEERS
from handmesh.evaluation.validation import fixed_batch, measure
from handmesh.model.ablated import build_arm, folded_arm
from handmesh.model.regressor import HandRegressor, NetworkConfig, save_checkpoint
from handmesh.training.config import TrainConfig
from handmesh.training.loop import Trainer
from handmesh.training.losses import training_loss

#: question -> arms that answer it, the control first
ABLATIONS: dict[str, tuple[str, ...]] = {
    "mixer": ("fastvit_t8", "fastvit_t8_pooling"),
    "overparameterisation": ("fastvit_t8", "fastvit_t8_plain"),
    "kernels": ("fastvit_t8", "fastvit_t8_small_kernels"),
    "attention": ("fastvit_s12", "fastvit_sa12", "fastvit_sa12_no_cpe"),
    "backbones": (*PEERS, "fastvit_s12", "fastvit_sa12"),
}

#: Mild, so that little training already tells networks apart; backgrounds are as rendered.
ABLATION_AUGMENT = AugmentConfig(
    scale_range=(0.87, 1.15),
    shift=0.04,
    turn_deg=15.0,
    large_turn=0.0,
    spectrum=0.0,
    keep_left=0.0,
    new_background=0.0,
    occluder=0.0,
    colour=0.8,
    grey=0.0,
    blur=0.2,
    noise=0.2,
    jpeg=0.2,
)


@dataclass(frozen=True)
class Protocol:
    """What all arms share. `data`: a rendered set, trained on its training split, measured on its evaluation split."""

    data: Path
    folder: Path
    samples: int = 3_200
    size: int = 64
    batch_size: int = 16
    learning_rate: float = 1e-3
    evaluation_hands: int = 200
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            network=NetworkConfig(input_size=self.size),
            samples=self.samples,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.samples // 20,
            decay=0.5,
            ema_decay=0.99,
            seed=0,
            negative_share=0.0,
            augment=ABLATION_AUGMENT,
        )

    def describe(self) -> dict[str, Any]:
        """The numbers that a result must carry."""
        config = self.config
        names = ("samples", "batch_size", "learning_rate", "warmup", "decay", "weight_decay", "ema_decay")
        return {
            **{name: getattr(config, name) for name in names},
            "crop_px": self.size,
            "head": config.network.head,
            "evaluation_hands": self.evaluation_hands,
            "hands": self.hands,
        }

    @cached_property
    def hands(self) -> list[str]:
        """Which hands are trained on, and which are measured on."""
        return [FreiHandSplit.open(self.data, split).digest for split in ("training", "evaluation")]


class CachedBatches(Dataset[Batch]):
    """A stream whose batches are cut once and then read from files."""

    def __init__(self, stream: Dataset[Batch], folder: Path) -> None:
        self.stream, self.folder = stream, folder

    def __getitem__(self, step: int) -> Batch:
        path = self.folder / f"{step:06d}.pt"
        if path.is_file():
            return Batch(**torch.load(path, weights_only=True))
        batch = self.stream[step]
        save_checkpoint(batch._asdict(), path)
        return batch


def build_network(arm: str, protocol: Protocol, seed: int) -> HandRegressor:
    """An arm's untrained hand network."""
    torch.manual_seed(seed)
    return HandRegressor(protocol.config.network, backbone=build_arm(arm))


def run_arm(arm: str, protocol: Protocol, seed: int = 1) -> dict[str, float]:
    """Train an arm to its end, going on where it stopped, and measure it; the result is kept in its folder.

    Raises ValueError if the folder holds a run under another protocol.
    """
    folder = protocol.folder / f"{arm}_seed{seed}"
    file = folder / "result.json"
    facts = json.loads(json.dumps(protocol.describe()))
    if file.is_file():
        stored = json.loads(file.read_text())
        if stored["protocol"] != facts:
            raise ValueError(f"{file} was made with {stored['protocol']}, not {facts}: choose another --out")
        return stored["errors"]
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        protocol.config,
        folder,
        Mixture([FreiHandDataset(protocol.data, "training")], [1.0]),
        [],
        {},
        network=build_network(arm, protocol, seed),
        device=protocol.device,
        workers=protocol.workers,
    )
    cut = f"batches_{protocol.size}px_{protocol.batch_size}_{protocol.hands[0]}"
    trainer.stream = CachedBatches(trainer.stream, protocol.folder / cut)
    trainer.run(measure_every=10 * protocol.samples)
    errors = measure(trainer.ema_network(), evaluation_batch(protocol))
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps({"arm": arm, "seed": seed, "protocol": facts, "errors": errors}, indent=1))
    (folder / "last.pt").unlink(missing_ok=True)  # the averaged weights stay
    return errors


def evaluation_batch(protocol: Protocol) -> Batch:
    """Evenly spaced hands of the evaluation split."""
    dataset = FreiHandDataset(protocol.data, "evaluation")
    rows = np.linspace(0, len(dataset) - 1, min(protocol.evaluation_hands, len(dataset))).astype(int)
    return fixed_batch(dataset, protocol.size, rows.tolist())


def time_training(arms: Sequence[str], protocol: Protocol, *, rounds: int = 9) -> dict[str, float]:
    """Median ms of an optimiser step of every arm in plain PyTorch, float32, the arms taking turns."""
    dataset = FreiHandDataset(protocol.data, "training")
    stream = BatchStream(
        Mixture([dataset], [1.0]),
        ImagePool([]),
        batch_size=protocol.batch_size,
        size=protocol.size,
        augment=ABLATION_AUGMENT,
        seed=0,
        rank=0,
        steps=1,
    )
    batch = Batch(*(column.to(protocol.device) for column in stream[0]))
    steps = {arm: _Step(build_network(arm, protocol, 0).to(protocol.device), batch) for arm in arms}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + 2):
        for arm, step in steps.items():
            started = _clock(protocol.device)
            step()
            if number >= 2:
                times[arm].append(1e3 * (_clock(protocol.device) - started))
    return {arm: float(np.median(values)) for arm, values in times.items()}


def _clock(device: torch.device) -> float:
    """Seconds of this process's CPU time, which other programs do not stretch; on a GPU, of the wall clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class _Step:
    def __init__(self, network: HandRegressor, batch: Batch) -> None:
        self.network, self.batch = network.train(), batch
        self.optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

    def __call__(self) -> None:
        loss, _ = training_loss(self.network(self.batch.crops), self.batch, self.network.hand_model, TrainConfig().loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class _BackboneAndHead(nn.Module):
    def __init__(self, network: HandRegressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        head = self.network.regress(crops)
        return head.rotations, head.betas, head.camera, head.joints_2d


def time_inference(arms: Sequence[str], size: int, folder: Path, *, rounds: int = 40) -> dict[str, float]:
    """Median ms from one crop to parameters, folded, onnxruntime, one thread, float32, the arms taking turns."""
    sessions = {arm: _session(arm, size, folder / f"{arm}_{size}.onnx") for arm in arms}
    crop = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + 3):
        for arm, session in sessions.items():
            started = time.process_time()
            session.run(None, {"crop": crop})
            if number >= 3:
                times[arm].append(1e3 * (time.process_time() - started))
    return {arm: float(np.median(values)) for arm, values in times.items()}


def _session(arm: str, size: int, path: Path) -> Any:
    import onnxruntime

    from handmesh.model.deploy import export_graph

    if not path.is_file():
        network = HandRegressor(NetworkConfig(input_size=size), backbone=build_arm(arm)).eval()
        network.backbone = folded_arm(network.backbone)
        example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        outputs = ("rotations", "betas", "camera", "joints_2d")
        module = _BackboneAndHead(network).eval()
        export_graph(module, (example,), ("crop",), outputs, path, {"arm": arm}, float16=False, open_axes=())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def parameters(arm: str) -> int:
    """Parameters of an arm's backbone, in its training form."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_arm(arm).parameters())
