"""Training batches drawn from several datasets. Batch `step` of a worker depends on the seed alone: resume is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from handmesh.datasets.augment import AugmentConfig, ImagePool, make_beside, make_negative, make_target
from handmesh.datasets.sample import Batch, HandSample, Target, collate

BESIDE_TRIES = 4
"""Hands that are looked at for a place beside them; one in three or four has one."""


class HandDataset(Protocol):
    """Anything with a length that gives annotated hands by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> HandSample: ...


@dataclass(frozen=True)
class Mixture:
    """Datasets with their shares of a batch; what is left of 1 are crops without a hand."""

    datasets: Sequence[HandDataset]
    shares: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.datasets) != len(self.shares) or min(self.shares, default=0) < 0 or sum(self.shares) > 1 + 1e-9:
            raise ValueError(
                f"{len(self.datasets)} datasets need as many shares with a sum of at most 1: {self.shares}"
            )
        for dataset in self.datasets:
            if len(dataset) == 0:
                raise ValueError(f"{dataset} is empty")


class BatchStream(Dataset[Batch]):
    """Map from step to batch; give it to a DataLoader with `batch_size=None`."""

    def __init__(
        self,
        mixture: Mixture,
        pool: ImagePool,
        *,
        batch_size: int,
        size: int,
        augment: AugmentConfig,
        seed: int,
        rank: int,
        steps: int,
    ) -> None:
        self.mixture, self.pool, self.augment = mixture, pool, augment
        self.batch_size, self.size, self.seed, self.rank, self.steps = batch_size, size, seed, rank, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, self.rank, step])
        edges = np.cumsum(self.mixture.shares)
        targets = []
        for _ in range(self.batch_size):
            kind = int(np.searchsorted(edges, rng.random(), side="right"))
            if kind == len(edges):
                targets.append(self._without_hand(rng))
            else:
                sample = _any_of(self.mixture.datasets[kind], rng)
                other = _any_of(self.mixture.datasets[kind], rng) if rng.random() < self.augment.other_hand else None
                targets.append(make_target(sample, self.size, self.augment, self.pool, rng, other))
        return collate(targets)

    def _without_hand(self, rng: np.random.Generator) -> Target:
        """From beside a hand, or from the pool where that is not wanted or not found."""
        if rng.random() < self.augment.beside:
            for _ in range(BESIDE_TRIES):
                sample = _any_of(self.mixture.datasets[int(rng.integers(len(self.mixture.datasets)))], rng)
                beside = make_beside(sample, self.size, self.augment, self.pool, rng)
                if beside is not None:
                    return beside
        return make_negative(self.pool, self.size, self.augment, rng)


def _any_of(dataset: HandDataset, rng: np.random.Generator) -> HandSample:
    return dataset[int(rng.integers(len(dataset)))]
