"""Training of the hand detector: composed frames, resumable, and an exported graph at the end.

python -m handmesh.training.detector --data PHOTOS --out FOLDER [--rendered SET] [--minutes 30], or with two processes
torchrun --nproc_per_node 2 -m handmesh.training.detector ...
"""

from __future__ import annotations

import argparse
import copy
import logging
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from handmesh.atomic import written_whole
from handmesh.datasets.detection import (
    TRAIN_SETS,
    Hands,
    Targets,
    encode,
    load_arms,
    load_cutouts,
    load_photographed,
    load_photos,
    load_plain,
    plain_folders,
)
from handmesh.datasets.frame_composer import ComposerConfig, Pictures, compose
from handmesh.mistakes import in_one_line, stop_asked
from handmesh.model.deploy import read_graph, register_weights, stored_weights
from handmesh.model.detector import DETECTOR_VERSION, STRIDE, DetectorNetwork, DetectorOutput, export_detector, turn
from handmesh.model.regressor import read_checkpoint, save_checkpoint
from handmesh.training.cpu_kernels import accelerate
from handmesh.training.cpu_ops import reuse_freed_memory
from handmesh.training.curves import append_row, drop_rows_after
from handmesh.training.processes import agree, leave_stopping, process_group, rank_and_world
from handmesh.training.warm_start import imagenet_weights

logger = logging.getLogger(__name__)

PHOTO_SIDE = 320
CPU = torch.device("cpu")
CONVOLUTION_OR_NORM = (nn.Conv2d, nn.BatchNorm2d)
LEAST_DEVIATION = 1e-3  # of a channel's output that is worth bringing to 1
CALIBRATION_STEPS = 8  # batches of frames that give a published network its moments back
SET_WEIGHTS = {
    "subhi_webcam": 0.36,
    "lebanese_gestures": 0.25,
    "asl_letters_davidlee": 0.2,
    "sign_digits": 0.13,
    "grocery_holding": 0.06,
}


@dataclass(frozen=True)
class DetectorConfig:
    """Everything that decides a run but its data; lengths are in samples, `ema_decay` is per step."""

    samples: int = 60_000
    batch_size: int = 16  # half of it are mirror images of the other half, so that both sides are seen alike
    coarse: float = 0.55  # share of the samples, the first ones, that are composed in smaller frames
    coarse_size: tuple[int, int] = (192, 128)  # width and height of those; a hand has as many pixels as later
    learning_rate: float = 8e-4
    warmup: int = 2_000
    weight_decay: float = 0.02
    clip_norm: float = 5.0
    ema_decay: float = 0.995
    box_weight: float = 2.0
    side_weight: float = 1.0
    triangle_weight: float = 4.0
    rendered_limit: int = 12_000  # rendered hands that are kept in memory
    arms_limit: int = 3_000  # rendered hands of which only the arm is kept, too
    seed: int = 1
    composer: ComposerConfig = field(default_factory=ComposerConfig)

    def __post_init__(self) -> None:
        if self.samples < self.batch_size or self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(f"need samples >= an even batch_size, got {self.samples} and {self.batch_size}")

    def composer_at(self, step: int) -> ComposerConfig:
        """How the frames of batch `step` are composed."""
        if (step + 1) * self.batch_size > self.coarse * self.samples:
            return self.composer
        width, height = self.coarse_size
        growth = self.composer.width / width
        low, high = (share * growth for share in self.composer.hand_sides)
        return replace(self.composer, width=width, height=height, hand_sides=(low, min(high, 0.9)))

    def rate_at(self, seen: int) -> float:
        """Learning rate after `seen` samples: linear warm-up, then half a cosine down to 1 %."""
        progress = min(1.0, seen / self.samples)
        cosine = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress))
        return float(self.learning_rate * min(1.0, (seen + 1) / max(1, self.warmup)) * cosine)


class FrameStream(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Item i is the batch of step i: frames (B, H, W, 3) uint8 and stacked `Targets`.

    With several processes it is the share of process `rank` of `world`; together they see what one would see alone.
    """

    def __init__(self, pictures: Pictures, config: DetectorConfig, rank: int = 0, world: int = 1) -> None:
        if config.batch_size % (2 * world):
            raise ValueError(f"a batch of {config.batch_size} cannot be shared by {world} processes in pairs")
        self.pictures, self.config = pictures, config
        self.places = range(rank, config.batch_size // 2, world)
        self.steps = config.samples // config.batch_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config, composer = self.config, self.config.composer_at(step)
        images, targets = [], []
        for place in self.places:
            rng = np.random.default_rng([config.seed, step, place])
            frame = compose(self.pictures, composer, rng)
            for image, hands in ((frame.image, frame.hands), mirrored(frame.image, frame.hands)):
                images.append(image)
                targets.append(encode(hands, composer.width, composer.height, STRIDE))
        return torch.from_numpy(np.stack(images)), stack_targets(targets)


def mirrored(image: NDArray[np.uint8], hands: Hands) -> tuple[NDArray[np.uint8], Hands]:
    """The picture (H, W, 3) and its hands seen in a mirror: left hands are right ones."""
    return image[:, ::-1], hands.moved(np.array([[-1.0, 0.0, image.shape[1] - 1.0], [0.0, 1.0, 0.0]]))


def stack_targets(targets: Sequence[Targets]) -> dict[str, Tensor]:
    """The fields of B targets, each stacked to (B, c, h, w)."""
    rows = [vars(t) for t in targets]
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def detector_loss(
    output: DetectorOutput, targets: dict[str, Tensor], config: DetectorConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses and its parts, each per hand (0-d tensors).

    Centres: penalty-reduced focal loss (Law and Deng, "CornerNet", 2018; alpha 2, beta 4). Boxes: generalised IoU
    (Rezatofighi et al., 2019). Sides and what faces the camera: cross-entropy. The palm's triangle: smooth L1.
    """
    hands = targets["box_weight"].sum().clamp_min(1.0)
    terms = {
        "centre": (centre_loss(output.centre, targets["heatmap"]) * targets["counted"]).sum() / hands,
        "box": (box_loss(output.boxes, targets["boxes"]) * targets["box_weight"]).sum() / hands,
    }
    side = functional.binary_cross_entropy_with_logits(output.right, targets["right"], reduction="none")
    terms["side"] = (side * targets["right_weight"]).sum() / targets["right_weight"].sum().clamp_min(1.0)
    apart = functional.smooth_l1_loss(output.triangle, targets["triangle"], beta=0.2, reduction="none")
    terms["triangle"] = (apart * targets["box_weight"]).sum() / (6 * hands)
    turned = turn(targets["triangle"])
    back = (turned * (2 * targets["right"] - 1) > 0).float()
    facing = functional.binary_cross_entropy_with_logits(output.facing, back, reduction="none")
    clear = targets["right_weight"] * turned.abs()
    terms["facing"] = (facing * clear).sum() / clear.sum().clamp_min(1.0)
    total = (
        terms["centre"]
        + config.box_weight * terms["box"]
        + config.side_weight * (terms["side"] + terms["facing"])
        + config.triangle_weight * terms["triangle"]
    )
    return total, terms


def centre_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Per cell (same shape): focal loss where the heatmap is 1, reduced near a centre elsewhere."""
    probability = torch.sigmoid(logits)
    found = -functional.logsigmoid(logits) * (1 - probability) ** 2
    empty = -functional.logsigmoid(-logits) * probability**2 * (1 - heatmap) ** 4
    return torch.where(heatmap >= 1, found, empty)


def box_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Per cell (N, 1, h, w): 1 - generalised IoU of two boxes (N, 4, h, w) given as l, t, r, b from one point."""
    low = torch.minimum(predicted, wanted)
    high = torch.maximum(predicted, wanted)
    shared = (low[:, :2] + low[:, 2:]).clamp_min(0).prod(1, keepdim=True)
    hull = (high[:, :2] + high[:, 2:]).clamp_min(0).prod(1, keepdim=True)
    areas = [(b[:, :2] + b[:, 2:]).clamp_min(0).prod(1, keepdim=True) for b in (predicted, wanted)]
    union = (areas[0] + areas[1] - shared).clamp_min(1e-3)
    return 1 - shared / union + (hull - union) / hull.clamp_min(1e-3)


class DetectorTrainer:
    """One run in a folder; `run()` goes on from its `last.pt` if there is one."""

    def __init__(self, config: DetectorConfig, folder: Path, pictures: Pictures, network: DetectorNetwork) -> None:
        self.config, self.folder = config, folder
        self.rank, self.world = rank_and_world()
        self.network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.averaged = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
        )
        self.optimizer = torch.optim.AdamW(
            _groups(self.network, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self.step = 0
        self.stream = FrameStream(pictures, config, self.rank, self.world)
        if (folder / "last.pt").is_file():
            self._restore(read_checkpoint(folder / "last.pt"))
        self.model: nn.Module = accelerate(self.network)
        if self.world > 1:
            self.model = DistributedDataParallel(self.model)

    def run(
        self,
        minutes: float = float("inf"),
        workers: int = 1,
        save_every_s: float = 180,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until all samples are seen (True), or until the time is up or ``stopped`` says so (False)."""
        started = saved = marked = time.monotonic()
        sums: dict[str, float] = {}
        marked_step = self.step
        for images, targets in self._batches(workers):
            for name, value in self._train_step(images, targets).items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
            now = time.monotonic()
            if self.step % 50 == 0:
                count = self.step - marked_step
                rate = count * self.config.batch_size / (now - marked)
                self._record({"rate": rate, **{k: v / count for k, v in sums.items()}})
                sums, marked, marked_step = {}, now, self.step
            time_up, save, stop = agree(
                self.step, CPU, now - started > minutes * 60, now - saved > save_every_s, stopped()
            )
            if save or time_up or stop or self.step == self.stream.steps:
                self.save()
                saved = now
            if time_up or stop:
                break
        return self.step >= self.stream.steps

    @property
    def best(self) -> DetectorNetwork:
        """The averaged network."""
        network = DetectorNetwork()
        network.load_state_dict(self.averaged.module.state_dict())
        return network.eval()

    def save(self) -> None:
        """Write `last.pt` (to go on) and `network.pt` (the averaged weights), each at once or not at all."""
        if self.rank:
            return
        averaged = self.averaged.module.state_dict()
        full = {
            "network": self.network.state_dict(),
            "averaged": averaged,
            "averaged_steps": self.averaged.n_averaged,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "batch_size": self.config.batch_size,
        }
        for name, content in (("last.pt", full), ("network.pt", averaged)):
            save_checkpoint(content, self.folder / name)

    def _batches(self, workers: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        order = range(self.step, self.stream.steps)
        yield from DataLoader(
            self.stream, batch_size=None, sampler=order, num_workers=workers, worker_init_fn=leave_stopping
        )

    def _train_step(self, images: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
        rate = self.config.rate_at(self.step * self.config.batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.model(images)
        loss, terms = detector_loss(output, targets, self.config)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        return {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}

    def _record(self, row: dict[str, float]) -> None:
        if self.rank:
            return
        row = {"seen": self.step * self.config.batch_size, **row}
        append_row(self.folder / "log.csv", row, digits=5)
        logger.info(" ".join(f"{name}={value:.4g}" for name, value in row.items()))

    def _restore(self, stored: dict[str, Any]) -> None:
        if stored["batch_size"] != self.config.batch_size:
            raise ValueError(
                f"{self.folder / 'last.pt'} was trained with batches of {stored['batch_size']}, "
                f"this run has {self.config.batch_size}: resume with the same"
            )
        self.network.load_state_dict(stored["network"])
        self.averaged.module.load_state_dict(stored["averaged"])
        self.averaged.n_averaged.copy_(stored["averaged_steps"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step = stored["step"]
        if self.step > self.stream.steps:
            raise ValueError(
                f"{self.folder / 'last.pt'} has seen {self.step * self.config.batch_size} samples already, more than "
                f"the {self.config.samples} of this run: ask for more, or start in another folder"
            )
        if self.rank == 0 and (self.folder / "log.csv").is_file():
            drop_rows_after(self.folder / "log.csv", self.step * self.config.batch_size)


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


def imagenet_network() -> DetectorNetwork:
    """An untrained detector on a backbone with ImageNet weights (Apache-2.0, from an installed package)."""
    network, weights = DetectorNetwork(), imagenet_weights()
    network.backbone.load_state_dict({name: weights[name] for name in network.backbone.state_dict()})
    return network


def initial_network(path: Path | None, stream: FrameStream) -> DetectorNetwork:
    """What a run starts from: ImageNet weights, an earlier run's network.pt, or a published graph."""
    if path is None:
        return imagenet_network()
    if path.suffix == ".onnx":
        steps = range(len(stream) - min(CALIBRATION_STEPS, len(stream)), len(stream))  # of the full size
        return published_network(path, torch.cat([stream[step][0] for step in steps]))
    network = DetectorNetwork()
    network.load_state_dict(read_checkpoint(path))
    return network


@torch.no_grad()
def published_network(path: Path, frames: Tensor) -> DetectorNetwork:
    """The detector that `export_detector` wrote, ready to be trained on.

    Its batch normalisations are folded into the convolutions before them; here they come back with the moments that
    frames (N, H, W, 3) uint8 give them, so that the network computes what the file does, in training mode on these
    frames as well. Raises ValueError where the file lacks a layer.
    """
    stored = stored_weights(read_graph(path), "model.")
    network = DetectorNetwork().eval()
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, CONVOLUTION_OR_NORM)]
    hooks = []
    for (name, layer), (_, following) in zip(layers, [*layers[1:], ("", nn.Identity())], strict=True):
        if not isinstance(layer, nn.Conv2d):
            continue
        bias_name = f"{name}.bias" if layer.bias is not None else f"{name}.weight_bias"
        if name == "palm" and f"{name}.weight" not in stored:  # the first version had none
            continue
        if f"{name}.weight" not in stored or bias_name not in stored:
            raise ValueError(f"{path} lacks the layer {name}: it is not a detector of this version")
        layer.weight.copy_(torch.tensor(stored[f"{name}.weight"], dtype=torch.float32))
        bias = torch.tensor(stored[bias_name], dtype=torch.float32)
        if layer.bias is not None:
            layer.bias.copy_(bias)
        else:
            assert isinstance(following, nn.BatchNorm2d)
            hooks.append(following.register_forward_pre_hook(_Unfold(layer, bias)))
    network(frames)
    for hook in hooks:
        hook.remove()
    return network


class _Unfold:
    """Splits a convolution with a bias into one whose output has variance 1 and the normalisation behind it.

    A channel that hardly varies keeps its scale: to bring its output to 1 would take weights of a million, which no
    float16 holds once the channel's input dies.
    """

    def __init__(self, convolution: nn.Conv2d, bias: Tensor) -> None:
        self.convolution, self.bias = convolution, bias

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        (values,) = inputs
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        deviation = variance.sqrt()
        deviation = torch.where(deviation > LEAST_DEVIATION, deviation, 1.0)  # a dead channel stays as it is
        self.convolution.weight.div_(deviation.view(-1, 1, 1, 1))
        norm.running_mean.copy_(mean / deviation)
        norm.running_var.fill_(1.0)
        norm.weight.copy_(deviation * (1 + norm.eps) ** 0.5)
        norm.bias.copy_(mean + self.bias)
        return (values / deviation.view(-1, 1, 1),)


def load_pictures(data: Path, rendered: Sequence[Path], limit: int, arms_limit: int) -> Pictures:
    """All training pictures, in memory; hands are cut out of the photos, which takes some minutes.

    Photos without a hand that MediaPipe found are left out.
    """
    folders = plain_folders(data)
    kinds = {
        kind: load_plain([f for f in folders if f.parent.name == kind], held_out=False, max_side=PHOTO_SIDE)
        for kind in ("backgrounds", "people")
    }
    sets = [[p for p in load_photos(data / "hands" / name, PHOTO_SIDE) if len(p.hands)] for name in TRAIN_SETS]
    cutouts = [photo for root in rendered for photo in load_cutouts(root, limit // len(rendered))]
    arms = [photo for root in rendered for photo in load_arms(root, arms_limit // len(rendered))]
    photographed = [load_photographed(data / "hands" / name) for name in TRAIN_SETS]
    weights = [SET_WEIGHTS[n] for n in TRAIN_SETS]
    return Pictures(sets, weights, kinds["backgrounds"], kinds["people"], cutouts, arms, photographed)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the hand detector and export it."""
    parser = argparse.ArgumentParser(prog="handmesh.training.detector", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with hands/, backgrounds/ and people/")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and log; goes on")
    parser.add_argument("--rendered", type=Path, nargs="*", default=[], help="rendered sets with alpha")
    parser.add_argument("--init", type=Path, help="network.pt of an earlier run, or a published .onnx, to start from")
    parser.add_argument("--publish", type=Path, help="folder for the graph and its weights.json (default: the run)")
    parser.add_argument("--start-share", type=float, default=0.0, help="of --init in the mean that is published")
    parser.add_argument("--samples", type=int, default=DetectorConfig.samples)
    parser.add_argument("--width", type=int, default=ComposerConfig.width, help="of the frames; less is faster")
    parser.add_argument("--height", type=int, default=ComposerConfig.height)
    parser.add_argument("--learning-rate", type=float, default=DetectorConfig.learning_rate)
    parser.add_argument("--batch-size", type=int, default=DetectorConfig.batch_size, help="of all processes")
    parser.add_argument("--seed", type=int, default=DetectorConfig.seed)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, resumable, after this time")
    parser.add_argument("--workers", type=int, default=1, help="processes that compose frames")
    args = parser.parse_args(argv)
    if not 0.0 <= args.start_share < 1.0:
        parser.error(f"--start-share must lie between 0 and 1, got {args.start_share}")
    if args.start_share and args.init is None:
        parser.error("--start-share needs --init: an untrained network is nothing to average with")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    reuse_freed_memory()
    cv2.setNumThreads(0)  # its threads do not survive the fork of the workers

    composer = ComposerConfig(width=args.width, height=args.height)
    config = DetectorConfig(
        samples=args.samples,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        composer=composer,
    )
    torch.manual_seed(config.seed)
    with process_group(gpu=False):
        pictures = load_pictures(args.data, args.rendered, config.rendered_limit, config.arms_limit)
        network = initial_network(args.init, FrameStream(pictures, config))
        start = copy.deepcopy(network)
        trainer = DetectorTrainer(config, args.out, pictures, network)
        if trainer.rank == 0:
            with written_whole(args.out / "config.txt") as temporary:
                temporary.write_text(f"{asdict(config)}\n")
        with stop_asked(signal.SIGINT, signal.SIGTERM) as stopped:
            done = trainer.run(minutes=args.minutes, workers=args.workers, stopped=stopped)
            if stopped() and not done:
                raise KeyboardInterrupt
        if trainer.rank == 0:
            logger.info("%s after %d samples", "done" if done else "stopped", trainer.step * config.batch_size)
            network = mean_network(start, trainer.best, args.start_share)
            publish(network, args.publish or args.out, trainer.step * config.batch_size)
    return 0


def mean_network(first: DetectorNetwork, second: DetectorNetwork, share: float) -> DetectorNetwork:
    """The mean of two networks' weights and moments, `share` of it the first's: of a run's start and end, say."""
    mean, other = copy.deepcopy(second), first.state_dict()
    for name, value in mean.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(other[name], share)
    return mean


def publish(network: DetectorNetwork, folder: Path, samples: int) -> Path:
    """Export into `folder` as `detector.onnx` and enter it, with the samples seen, into its weights.json."""
    facts = {"kind": "detector", "version": DETECTOR_VERSION, "samples": samples, "licence": "Apache-2.0"}
    with tempfile.TemporaryDirectory() as temporary:
        file = export_detector(network, Path(temporary) / "detector.onnx")
        register_weights(folder, "detector", file, facts)
    return folder / file.name


if __name__ == "__main__":
    raise SystemExit(in_one_line(main))
