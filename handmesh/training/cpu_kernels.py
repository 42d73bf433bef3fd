"""Fast CPU training of timm's FastViT and EfficientNet-Lite: the same modules, computed by the kernels of cpu_ops.

``accelerate(module)`` changes the class of the layers it knows, in place, to a subclass that computes the same function
in bfloat16; parameters, buffers, their names and the state dict stay as they are, so checkpoints move freely between
stock and accelerated modules. Outside ``torch.autocast("cpu", torch.bfloat16)`` an accelerated module runs its stock
code, so evaluation in float32, folding and export are not touched.

What makes the train-time branches of FastViT cheap: they all end in a batch normalisation and are then summed, so a
block is one affine function of a few tensors whose coefficients follow from per-channel moments (fused_branches).
An identity branch and a depthwise 1x1 branch share the moments of their input; a normalisation in front of a 1x1
convolution is folded into its weights.
"""

# timm's layers declare no types, so their attributes are Tensor | Module to pyright.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportOptionalOperand=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalIterable=false, reportIndexIssue=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.models import fastvit
from torch import Tensor, nn

from handmesh.training import cpu_ops
from handmesh.training.cpu_ops import Activation

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _ready(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dim() != 4 or cpu_ops.library() is None:
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


# ----------------------------------------------------------------------------------------------------------------
# Sums of batch normalisations
# ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Branch:
    """One normalised branch: sign * norm(weight * inputs[index])."""

    index: int
    norm: nn.BatchNorm2d
    weight: Tensor | None = None  # (C, 1, 1, 1) of a depthwise 1x1 convolution, or None
    sign: float = 1.0


def _track(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Update running statistics as nn.BatchNorm2d does: momentum, unbiased variance."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        assert norm.momentum is not None, "checked by accelerate"
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (count / max(count - 1, 1)), norm.momentum)


def _norm_affine(norm: nn.BatchNorm2d, moments: tuple[Tensor, Tensor] | None, count: int, gamma: Tensor, beta: Tensor):
    """Scale and shift (C,) of a batch normalisation, from the batch's moments or from the running ones."""
    if moments is None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
    else:
        mean, var = moments
        _track(norm, mean, var, count)
    scale = gamma * torch.rsqrt(var + norm.eps)
    return scale, beta - mean * scale


def _sum_of_norms(
    inputs: list[Tensor],
    branches: list[_Branch],
    activation: Activation = "none",
    gain: Tensor | None = None,
    training: bool = True,
) -> Tensor:
    """activation(sum of branches), or with a gain (C,): inputs[0] + gain * (sum of branches)."""
    parameters = [t for b in branches for t in (b.norm.weight, b.norm.bias)]
    parameters += [b.weight for b in branches if b.weight is not None]
    if gain is not None:
        parameters.append(gain)
    count = inputs[-1].numel() // inputs[-1].shape[1]

    def coefficients(moments, *leaves: Tensor):
        weights = iter(leaves[2 * len(branches) :])
        zero = leaves[0].new_zeros(())
        scales, shift = [zero] * len(inputs), zero
        for i, branch in enumerate(branches):
            pair = None if moments is None else moments[branch.index]
            weight = None if branch.weight is None else next(weights).flatten()
            if weight is not None and pair is not None:
                pair = pair[0] * weight, pair[1] * weight * weight
            scale, offset = _norm_affine(branch.norm, pair, count, leaves[2 * i], leaves[2 * i + 1])
            scale = scale if weight is None else scale * weight
            if branch.sign != 1:
                scale, offset = scale * branch.sign, offset * branch.sign
            scales[branch.index] = scales[branch.index] + scale
            shift = shift + offset
        if gain is not None:
            factor = next(weights).flatten()
            scales, shift = [s * factor for s in scales], shift * factor
            scales[0] = scales[0] + 1
        return scales, shift

    return cpu_ops.fused_branches(inputs, parameters, coefficients, activation, training)


def _fused_activation(act: nn.Module) -> Activation | None:
    """The kernel that computes an activation module, None if there is none."""
    if isinstance(act, nn.Identity):
        return "none"
    if isinstance(act, nn.GELU):
        return "gelu"
    if isinstance(act, nn.ReLU6):
        return "relu6"
    return None


def _activate_sum(block: nn.Module, inputs: list[Tensor], branches: list[_Branch]) -> Tensor:
    """block.act(block.se(sum of branches)), fused where the block has no squeeze-and-excitation."""
    fused = _fused_activation(block.act) if isinstance(block.se, nn.Identity) else None
    out = _sum_of_norms(inputs, branches, fused or "none", training=block.training)
    return out if fused else block.act(block.se(out))


# ----------------------------------------------------------------------------------------------------------------
# Layers
# ----------------------------------------------------------------------------------------------------------------


class _FastDepthwise(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not _ready(input):
            return super().forward(input)
        out = cpu_ops.depthwise(input, [self.weight], self.stride[0])[0]
        return out if self.bias is None else out + self.bias.to(out.dtype).view(1, -1, 1, 1)


class _FastDepthwiseSame(Conv2dSame):
    """With TensorFlow's padding: as little as the output needs, the odd one below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        if not _ready(x):
            return super().forward(x)
        stride, kernel = self.stride[0], self.kernel_size[0]
        height, width = x.shape[-2:]
        out_size = -(-height // stride), -(-width // stride)
        pads = [max((o - 1) * stride + kernel - n, 0) // 2 for o, n in zip(out_size, (height, width), strict=True)]
        out = cpu_ops.depthwise(x, [self.weight], stride, [(pads[0], pads[1])], out_size)[0]
        return out if self.bias is None else out + self.bias.to(out.dtype).view(1, -1, 1, 1)


class _FastGELU(nn.GELU):
    def forward(self, input: Tensor) -> Tensor:
        return cpu_ops.gelu(input) if _ready(input) else super().forward(input)


class _FastBatchNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        if not _ready(input):
            return super().forward(input)
        return _sum_of_norms([input], [_Branch(0, self)], training=self.training)


class _FastBatchNormAct(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        if not _ready(x):
            return super().forward(x)
        fused = _fused_activation(self.act)
        out = _sum_of_norms([x], [_Branch(0, self)], fused or "none", training=self.training)
        return out if fused else self.act(out)


class _FastMobileOneBlock(fastvit.MobileOneBlock):
    def forward(self, x: Tensor) -> Tensor:
        if not _ready(x) or self.reparam_conv is not None or self.dilation != 1:
            return super().forward(x)
        if self._is_stem() and not x.requires_grad and not x.shape[2] % 2 and not x.shape[3] % 2:
            return self._stem(x)
        if self.groups > 1:
            if not _is_fast_depthwise(self.conv_kxk[0].conv):
                return super().forward(x)
            inputs, branches = self._depthwise_branches(x)
        else:
            inputs, branches = self._dense_branches(x)
        if len(inputs) > cpu_ops.MAX_INPUTS:
            return super().forward(x)
        return _activate_sum(self, inputs, branches)

    def _depthwise_branches(self, x: Tensor) -> tuple[list[Tensor], list[_Branch]]:
        convolved = list(self.conv_kxk)
        shares_input = self.stride == 1 and self.out_chs == self.in_chs
        if self.conv_scale is not None and not shares_input:
            convolved.append(self.conv_scale)
        inputs = list(cpu_ops.depthwise(x, [b.conv.weight for b in convolved], self.stride))
        branches = [_Branch(i, b.bn) for i, b in enumerate(convolved)]
        if shares_input and (self.conv_scale is not None or self.identity is not None):
            inputs.append(x)
            if self.conv_scale is not None:
                branches.append(_Branch(len(inputs) - 1, self.conv_scale.bn, self.conv_scale.conv.weight))
            if self.identity is not None:
                branches.append(_Branch(len(inputs) - 1, self.identity))
        return inputs, branches

    def _dense_branches(self, x: Tensor) -> tuple[list[Tensor], list[_Branch]]:
        convolved = list(self.conv_kxk) + ([self.conv_scale] if self.conv_scale is not None else [])
        inputs = [b.conv(x) for b in convolved]
        branches = [_Branch(i, b.bn) for i, b in enumerate(convolved)]
        if self.identity is not None:
            inputs.append(x)
            branches.append(_Branch(len(inputs) - 1, self.identity))
        return inputs, branches

    def _is_stem(self) -> bool:
        return (
            (self.in_chs, self.kernel_size, self.stride, self.groups) == (3, 3, 2, 1)
            and len(self.conv_kxk) == 1
            and self.conv_scale is not None
        )

    def _stem(self, x: Tensor) -> Tensor:
        """Both branches are linear in the 27 values of a patch: the patches' covariance gives all moments, and one
        matrix product the normalised sum."""
        with torch.autocast("cpu", enabled=False):
            patches = cpu_ops.stem_patches(x)  # (M, 32)
            count = len(patches)
            values = patches.float() if self.training else patches[:0].float()
            mean = values.sum(0) / count
            covariance = values.T @ values / count - mean[:, None] * mean
            kxk, scale = self.conv_kxk[0], self.conv_scale
            flat = [kxk.conv.weight, F.pad(scale.conv.weight, (1, 1, 1, 1))]
            weight: Tensor | float = 0.0
            shift: Tensor | float = 0.0
            for w, norm in zip(flat, (kxk.bn, scale.bn), strict=True):
                w = F.pad(w.permute(0, 2, 3, 1).flatten(1), (0, 5))  # (C, 32)
                moments = (w @ mean, ((w @ covariance) * w).sum(1).clamp_min(0)) if self.training else None
                a, c = _norm_affine(norm, moments, count, norm.weight, norm.bias)
                weight, shift = weight + w * a[:, None], shift + c
        out = F.linear(patches, weight, shift)
        images, _, height, width = x.shape
        out = out.view(images, height // 2, width // 2, -1).permute(0, 3, 1, 2)
        return self.act(self.se(out))


class _FastReparamLargeKernelConv(fastvit.ReparamLargeKernelConv):
    def forward(self, x: Tensor) -> Tensor:
        if not _ready(x) or self.reparam_conv is not None or not _is_fast_depthwise(self.large_conv.conv):
            return super().forward(x)
        convolved = [self.large_conv] + ([self.small_conv] if self.small_kernel is not None else [])
        inputs = list(cpu_ops.depthwise(x, [b.conv.weight for b in convolved], self.stride))
        return _activate_sum(self, inputs, [_Branch(i, b.bn) for i, b in enumerate(convolved)])


class _FastRepMixer(fastvit.RepMixer):
    def forward(self, x: Tensor) -> Tensor:
        if not _ready(x) or self.reparam_conv is not None or not self._is_plain():
            return super().forward(x)
        convolved, branches = self.mixer._depthwise_branches(x)
        # The input goes first: it is what the gated sum is added to.
        last = len(convolved) - 1
        inputs = [convolved[last], *convolved[:last]]
        branches = [_Branch((b.index + 1) % len(inputs), b.norm, b.weight) for b in branches]
        branches.append(_Branch(0, self.norm.identity, sign=-1.0))
        return _sum_of_norms(inputs, branches, gain=self.layer_scale.gamma.flatten(), training=self.training)

    def _is_plain(self) -> bool:
        return isinstance(self.layer_scale, fastvit.LayerScale2d) and _is_fast_depthwise(self.mixer.conv_kxk[0].conv)


class _FastConvMlp(fastvit.ConvMlp):
    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """gain (C,): a layer scale for the output, folded into fc2; only where ``_folds`` says so."""
        if not self._folds(x):
            assert gain is None
            return super().forward(x)
        x, mean, var = cpu_ops.with_moments(cpu_ops.depthwise(x, [self.conv.conv.weight])[0])
        norm = self.conv.bn
        moments = (mean, var) if self.training else None
        scale, shift = _norm_affine(norm, moments, x.numel() // x.shape[1], norm.weight, norm.bias)
        weight = self.fc1.weight.flatten(1)  # (hidden, C)
        bias = self.fc1.bias + (weight * shift).sum(1)
        x = F.conv2d(x, (weight * scale)[:, :, None, None], bias)
        x = self.drop(self.act(x))
        weight, bias = self.fc2.weight, self.fc2.bias
        if gain is not None:
            weight, bias = weight * gain.view(-1, 1, 1, 1), bias * gain
        return self.drop(F.conv2d(x, weight, bias))

    def _folds(self, x: Tensor) -> bool:
        return _ready(x) and hasattr(self.conv, "bn") and _is_fast_depthwise(self.conv.conv)


def _gated_mlp(mlp: nn.Module, layer_scale: nn.Module, x: Tensor) -> Tensor:
    if isinstance(mlp, _FastConvMlp) and isinstance(layer_scale, fastvit.LayerScale2d) and mlp._folds(x):
        return mlp(x, layer_scale.gamma.flatten())
    return layer_scale(mlp(x))


class _FastRepMixerBlock(fastvit.RepMixerBlock):
    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(_gated_mlp(self.mlp, self.layer_scale, x))


class _FastAttentionBlock(fastvit.AttentionBlock):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path2(_gated_mlp(self.mlp, self.layer_scale_2, x))


# ----------------------------------------------------------------------------------------------------------------
# Swapping
# ----------------------------------------------------------------------------------------------------------------

_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _FastDepthwise,
    Conv2dSame: _FastDepthwiseSame,
    nn.GELU: _FastGELU,
    nn.BatchNorm2d: _FastBatchNorm,
    BatchNormAct2d: _FastBatchNormAct,
    fastvit.MobileOneBlock: _FastMobileOneBlock,
    fastvit.ReparamLargeKernelConv: _FastReparamLargeKernelConv,
    fastvit.RepMixer: _FastRepMixer,
    fastvit.ConvMlp: _FastConvMlp,
    fastvit.RepMixerBlock: _FastRepMixerBlock,
    fastvit.AttentionBlock: _FastAttentionBlock,
}
_STOCK = {fast: stock for stock, fast in _FAST.items()}


def _is_fast_depthwise(conv: nn.Module) -> bool:
    """Whether the kernels compute this convolution."""
    if not isinstance(conv, nn.Conv2d) or conv.groups == 1 or conv.groups != conv.in_channels:
        return False
    kernel = conv.kernel_size[0]
    centred = isinstance(conv, Conv2dSame) or conv.padding == (kernel // 2, kernel // 2)
    return (
        conv.kernel_size == (kernel, kernel)
        and kernel in cpu_ops.KERNEL_SIZES
        and conv.stride in ((1, 1), (2, 2))
        and conv.dilation == (1, 1)
        and conv.out_channels // conv.in_channels in (1, 2)
        and conv.out_channels % cpu_ops.BLOCK == 0
        and centred
    )


def _is_fast(module: nn.Module) -> bool:
    if type(module) not in _FAST:
        return False
    if isinstance(module, nn.Conv2d):
        return _is_fast_depthwise(module)
    if isinstance(module, nn.BatchNorm2d):
        return module.affine and module.momentum is not None and module.track_running_stats
    return True


def accelerate(module: ModuleT) -> ModuleT:
    """Let the layers of a timm FastViT or EfficientNet-Lite compute with the CPU kernels, in place.

    Parameters, buffers and state dict keep their names. The kernels are used inside ``torch.autocast("cpu",
    torch.bfloat16)``, in training and evaluation mode; feed channels_last images. Without a compiler or a fitting
    CPU the module stays as it is, which is logged once.
    """
    if cpu_ops.library() is not None:
        for layer in module.modules():
            if _is_fast(layer):
                layer.__class__ = _FAST[type(layer)]
    return module


def restore(module: ModuleT) -> ModuleT:
    """Undo ``accelerate``, in place."""
    for layer in module.modules():
        layer.__class__ = _STOCK.get(type(layer), type(layer))
    return module
