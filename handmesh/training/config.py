"""Training presets: plain frozen objects, changed with `dataclasses.replace`."""

from __future__ import annotations

from dataclasses import dataclass, field

from handmesh.datasets.augment import AugmentConfig
from handmesh.model.regressor import NetworkConfig
from handmesh.training.losses import LossWeights


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run but its data folders; lengths are counted in samples over all processes."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    samples: int = 400_000
    batch_size: int = 32  # per process
    learning_rate: float = 1e-3
    warmup: int = 16_000
    decay: float = 0.3  # the last share of the samples, over which the rate falls linearly to zero
    weight_decay: float = 0.03
    clip_norm: float = 10.0
    ema_decay: float = 0.9985
    seed: int = 1
    synthetic_share: float = 0.55  # of a batch
    photo_share: float = 0.38  # the rest are crops without a hand
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    distillation: float = 1.0  # factor of what teachers say, where there are any, beside the labels' terms

    def __post_init__(self) -> None:
        if self.samples < self.batch_size or not 0 <= self.decay <= 1:
            raise ValueError(f"need samples >= batch_size and 0 <= decay <= 1, got {self}")

    def rate_at(self, seen: int) -> float:
        """Learning rate after `seen` samples: linear warm-up, constant, linear decay."""
        left = (self.samples - seen) / max(1.0, self.decay * self.samples)
        return self.learning_rate * min(1.0, (seen + 1) / max(1, self.warmup), max(0.0, left))


PRESETS: dict[str, TrainConfig] = {
    "fast": TrainConfig(),
    "accurate": TrainConfig(network=NetworkConfig(input_size=192)),
    "smoke": TrainConfig(network=NetworkConfig(input_size=64), samples=2_000, batch_size=16, warmup=200),
}
