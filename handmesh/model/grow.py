"""Put a trained network's weights into a larger variant, which computes what the smaller one does and learns on.

The first channels of every layer are those of the smaller network and do not hear the new ones; blocks that it lacks
add nothing to their input yet. New channels start with random weights from all channels, so that gradients reach the
connections to them from the first step. ("Net2Net", Chen et al., ICLR 2016, copies channels instead.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def grow_from(smaller: Mapping[str, Tensor], network: nn.Module) -> None:
    """Load the state dict of a smaller network of the same kind, in its training form.

    Raises ValueError, with nothing changed, where a layer of the smaller network is not in this one or is larger there.
    """
    state = network.state_dict()
    for name, old in smaller.items():
        new = state.get(name)
        if new is None or new.dim() != old.dim() or any(n < o for n, o in zip(new.shape, old.shape, strict=True)):
            shape = None if new is None else tuple(new.shape)
            raise ValueError(f"{name} is {tuple(old.shape)} there and {shape} here: only smaller variants can grow")
    for name, new in state.items():  # they share memory with the network
        old = smaller.get(name)
        if old is None:
            if name.endswith("layer_scale.gamma"):
                new.zero_()
            continue
        if new.dim() > 1:
            new[: len(old)] = 0.0
        new[tuple(slice(extent) for extent in old.shape)] = old
