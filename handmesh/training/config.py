"""Training presets: plain frozen objects, changed with `dataclasses.replace`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from handmesh.datasets.augment import AugmentConfig
from handmesh.model.backbone import Variant
from handmesh.model.regressor import NetworkConfig
from handmesh.training.losses import LossWeights

FREIHAND_IMAGES = 130_240  # of its training split: 32,560 annotations, each before four backgrounds
FREIHAND_EPOCHS = 200  # METRO, Graphormer (whose set-up the FastViT paper follows) and SimpleHand


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run but its data folders; lengths are counted in samples over all processes."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    samples: int = 400_000
    epochs: float | None = None  # passes over the main data set, from which `samples` follow; None: `samples` count
    batch_size: int = 32  # per process
    learning_rate: float = 1e-3
    warmup: int = 16_000
    decay: float = 0.3  # the last share of the samples, over which the rate falls linearly to zero
    weight_decay: float = 0.03
    clip_norm: float = 10.0
    ema_decay: float = 0.9985
    seed: int = 1
    pretrained: bool = False  # start from timm's ImageNet weights, which a model hub has
    synthetic_share: float = 0.60  # of a batch; what data sets are not given leave their shares to the others
    photo_share: float = 0.30
    freihand_share: float = 0.38
    negative_share: float = 0.1  # crops without a hand
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    distillation: float = 1.0  # factor of what teachers say, where there are any, beside the labels' terms

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"a batch must have at least one sample, not {self.batch_size}")
        if self.samples < self.batch_size or not 0 <= self.decay <= 1:
            raise ValueError(
                "need samples >= batch_size and 0 <= decay <= 1, "
                f"got {self.samples} samples, batches of {self.batch_size} and a decay of {self.decay}"
            )
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be positive and finite, got {self.epochs}")
        if self.seed < 0 or not 0 < self.learning_rate < math.inf:
            raise ValueError(f"need a seed of at least 0 and a positive rate, got {self.seed} and {self.learning_rate}")
        if not 0 <= self.negative_share < 1:
            raise ValueError(f"negative_share must lie in [0, 1), got {self.negative_share}")

    def rate_at(self, seen: int) -> float:
        """Learning rate after `seen` samples: linear warm-up, constant, linear decay."""
        left = (self.samples - seen) / max(1.0, self.decay * self.samples)
        return self.learning_rate * min(1.0, (seen + 1) / max(1, self.warmup), max(0.0, left))

    def lasting(self, samples: int) -> TrainConfig:
        """This run stretched or shortened to `samples`, its warm-up in proportion."""
        return replace(self, samples=samples, epochs=None, warmup=round(self.warmup * samples / self.samples))

    def shares(self, given: dict[str, float]) -> list[float]:
        """Shares of a batch of the data sets that are there, from their wishes, so that negatives keep theirs."""
        return [(1 - self.negative_share) * wish / sum(given.values()) for wish in given.values()]


# The only published training file of this backbone on FreiHAND (SimpleHand, CVPR 2024: AdamW, rate 5e-4, a tenth of it
# from half the way on, weight decay 1e-2, gradient norm 1, stochastic depth .2, 32 images on each of 8 processes, 200
# times 256 of such steps, or 13 million images, 5 of the 200 for warm-up) turns images with a standard deviation of 90
# degrees (up to 180), enlarges boxes by 1 to 1.5, shifts centres by up to .1, multiplies channels by 1 +- .4 (as METRO
# and Graphormer do) and changes light. Left out: its mirroring, as parameters of a right-hand model cannot say a left
# hand, and its step of the rate, for which ours falls linearly over the last half.
PUBLISHED_AUGMENT = AugmentConfig(
    scale_range=(0.8, 1.2),  # of CROP_SCALE 1.6; the published 1 to 1.5 has the same ratio to its middle
    shift=0.058,  # the standard deviation of a uniform shift by up to .1
    turn_deg=90.0,
    large_turn=0.0,
    large_photo_turn=0.0,
    upright=0.0,
    keep_left=0.0,
    reflect=0.0,
    new_background=0.0,  # the archive brings its own copies
    new_photo_background=0.0,
    occluder=0.0,
    other_hand=0.0,
    spectrum=0.0,
    colour=0.0,
    channel_gain=0.4,
    light=1.0,
    grey=0.0,
    blur=0.0,
    noise=0.0,
    jpeg=0.0,
)


def _freihand(variant: Variant, drop_path: float) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(variant=variant, input_size=224, drop_path=drop_path),
        samples=FREIHAND_EPOCHS * FREIHAND_IMAGES,
        epochs=FREIHAND_EPOCHS,
        learning_rate=5e-4,
        warmup=5 * FREIHAND_IMAGES,
        decay=0.5,
        weight_decay=0.01,
        clip_norm=1.0,
        ema_decay=0.9995,  # the FastViT paper's
        pretrained=True,
        synthetic_share=0.2,
        photo_share=0.1,
        freihand_share=0.8,
        negative_share=0.0,
        augment=PUBLISHED_AUGMENT,
    )


# Measured on a network that had seen millions of samples; from nothing, keypoints come a little later with it.
_OWN_POSE = LossWeights(aligned_joints=15.0, aligned_vertices=15.0)

PRESETS: dict[str, TrainConfig] = {
    "fast": TrainConfig(network=NetworkConfig(activation="relu6"), loss=_OWN_POSE),
    "accurate": TrainConfig(network=NetworkConfig(input_size=192, activation="relu6"), loss=_OWN_POSE),
    "smoke": TrainConfig(network=NetworkConfig(input_size=64), samples=2_000, batch_size=16, warmup=200),
    "freihand-t8": _freihand("t8", 0.0),
    "freihand-sa12": _freihand("sa12", 0.1),
    "freihand-sa24": _freihand("sa24", 0.1),
    "freihand-ma36": _freihand("ma36", 0.2),
}
