"""Give a folded network its training-time branches back, so that training goes on from published weights.

The inverse of `deploy.fold` is not unique. Here every convolution gets back the branches and batch norms of the
training form, with weights that add up to the folded ones, and every batch norm is set to the statistics that it meets
on given crops, so that it passes its input on unchanged: the network computes what the folded one computes, and each
branch takes part in training from the first step.
"""

# timm's layers declare no types, so their attributes are Tensor | Module to pyright.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from timm.models import fastvit
from torch import Tensor, nn
from torch.nn import functional as F

from handmesh.model.regressor import HandRegressor

_SHARE = 0.5  # of a folded kernel's inner taps, for the small branch beside the main one


@torch.no_grad()
def unfold(folded: HandRegressor, batches: Iterable[Tensor]) -> HandRegressor:
    """The training form of a folded network, in training mode; it takes parameters over, so use one of the two.

    Args:
        folded: what `deploy.fold` or `deploy.load_torch_network` gives.
        batches: crops (N, S, S, 3) uint8 like those of training; the batch norms' statistics are taken from them.
    Raises:
        ValueError: the network has attention blocks, whose fold is not undone here, or `batches` is empty.
    """
    if any(isinstance(module, fastvit.AttentionBlock) for module in folded.modules()):
        raise ValueError(f"cannot unfold FastViT-{folded.config.variant}: it has attention; start from its checkpoint")
    network = HandRegressor(folded.config)
    network.hand_model = folded.hand_model
    biases: dict[nn.BatchNorm2d, Tensor] = {}
    _unfold_into(network, folded, biases)
    return _calibrate(network, biases, batches).train()


def _unfold_into(module: nn.Module, folded: nn.Module, biases: dict[nn.BatchNorm2d, Tensor]) -> None:
    """Give `module` the function of its folded twin; what its batch norms are to add goes into `biases`."""
    if isinstance(module, fastvit.MobileOneBlock):
        _split_mobile_one(module, folded.reparam_conv, biases)
        _unfold_into(module.se, folded.se, biases)
    elif isinstance(module, fastvit.ReparamLargeKernelConv):
        _split_large_kernel(module, folded.reparam_conv, biases)
        _unfold_into(module.se, folded.se, biases)
    elif isinstance(module, fastvit.RepMixer):
        module.layer_scale.gamma.fill_(1.0)  # the mixer's output is then all that is left of x + mixer(x) - x
        _split_mobile_one(module.mixer, folded.reparam_conv, biases)
    elif isinstance(module, fastvit.LayerScale2d):
        if isinstance(folded, fastvit.LayerScale2d):
            module.gamma.copy_(folded.gamma)
        else:  # folded into the convolution before it
            module.gamma.fill_(1.0)
    else:
        own = dict(module.named_parameters(recurse=False))
        for name, value in folded.named_parameters(recurse=False):
            if name in own:
                own[name].copy_(value)
        children = list(module.named_children())
        for (name, child), (_, following) in itertools.zip_longest(children, children[1:], fillvalue=("", None)):
            twin = getattr(folded, name)
            if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                child.weight.copy_(twin.weight)
                biases[following] = twin.bias
            elif not isinstance(child, nn.BatchNorm2d):
                _unfold_into(child, twin, biases)


def _split_mobile_one(block: fastvit.MobileOneBlock, merged: nn.Conv2d, biases: dict[nn.BatchNorm2d, Tensor]) -> None:
    """Spread a merged kernel over the branches of a block with one main convolution."""
    (main,) = block.conv_kxk
    kernel, middle = merged.weight.clone(), block.kernel_size // 2
    if block.identity is not None:
        channels = torch.arange(block.in_chs)
        kernel[channels, channels % kernel.shape[1], middle, middle] -= 1.0
    if block.conv_scale is not None:
        inner = _SHARE * kernel[..., middle : middle + 1, middle : middle + 1]
        block.conv_scale.conv.weight.copy_(inner)
        kernel -= F.pad(inner, [middle] * 4)
    main.conv.weight.copy_(kernel)
    biases[main.bn] = merged.bias


def _split_large_kernel(
    block: fastvit.ReparamLargeKernelConv, merged: nn.Conv2d, biases: dict[nn.BatchNorm2d, Tensor]
) -> None:
    kernel, border = merged.weight.clone(), (block.kernel_size - block.small_kernel) // 2
    inner = _SHARE * kernel[..., border:-border, border:-border]
    block.small_conv.conv.weight.copy_(inner)
    block.large_conv.conv.weight.copy_(kernel - F.pad(inner, [border] * 4))
    biases[block.large_conv.bn] = merged.bias


def _calibrate(
    network: HandRegressor, biases: dict[nn.BatchNorm2d, Tensor], batches: Iterable[Tensor]
) -> HandRegressor:
    """Set every batch norm so that it adds its bias and else does nothing, on average over the batches."""
    moments: dict[nn.BatchNorm2d, list[tuple[Tensor, Tensor]]] = {
        module: [] for module in network.modules() if isinstance(module, nn.BatchNorm2d)
    }

    def pass_on(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(norm, nn.BatchNorm2d)
        (x,) = inputs
        moments[norm].append((x.mean((0, 2, 3)), x.square().mean((0, 2, 3))))
        x = x + biases[norm].view(-1, 1, 1) if norm in biases else x
        return getattr(norm, "act", nn.Identity())(x)

    hooks = [norm.register_forward_hook(pass_on) for norm in moments]
    network.eval()
    for batch in batches:
        network.regress(batch)
    for hook in hooks:
        hook.remove()
    for norm, pairs in moments.items():
        if not pairs:
            raise ValueError("no crops to take the batch norms' statistics from")
        mean, square = (torch.stack(values).mean(0) for values in zip(*pairs, strict=True))
        variance = (square - mean.square()).clamp_min(0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean + biases.get(norm, torch.zeros_like(mean)))
    return network
