"""The kernels of cpu_kernels.cpp as differentiable torch functions.

The library is compiled with the system's C++ compiler at first use and kept in the user's cache directory. Where the
compiler or the CPU's AVX-512 bfloat16 instructions are missing, ``library()`` is None (said once in the log), and
callers keep to stock torch. All tensors are bfloat16 and channels_last; parameters and per-channel vectors float32.
"""

# torch's autograd.Function declares forward and backward with other parameters than every real one has.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

Activation = Literal["none", "gelu", "relu6"]
ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "relu6": 2}
MAX_INPUTS = 3  # of cpu_kernels.cpp
KERNEL_SIZES = (1, 3, 5, 7)
BLOCK = 16  # channels of a depthwise convolution come in multiples of this

_CPU_FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "fma")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-w", "-mtune=native")
_FEATURE_FLAGS = tuple("-m" + feature.replace("_", "") for feature in _CPU_FEATURES)
_Pointers = ctypes.c_void_p * MAX_INPUTS


class _Geometry(ctypes.Structure):
    _fields_ = [
        ("images", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("multiplier", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("out_height", ctypes.c_int),
        ("out_width", ctypes.c_int),
        ("stride", ctypes.c_int),
        ("kernels", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("size", ctypes.c_int * MAX_INPUTS),
        ("pad_y", ctypes.c_int * MAX_INPUTS),
        ("pad_x", ctypes.c_int * MAX_INPUTS),
    ]


class _Inputs(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("rows", ctypes.c_int64),
        ("data", _Pointers),
        ("scale", _Pointers),
        ("shift", ctypes.c_void_p),
    ]


def _missing_cpu_features() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return list(_CPU_FEATURES)
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    return [feature for feature in _CPU_FEATURES if feature not in flags]


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "handmesh"


def _compile(source: Path, compiler: str) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\n".join([source.read_text(), version, *_FLAGS, *_FEATURE_FLAGS]).encode())
    target = _cache_dir() / f"cpu_kernels-{key.hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            subprocess.run(
                [compiler, *_FLAGS, *_FEATURE_FLAGS, "-o", str(built), str(source)], check=True, capture_output=True
            )
            built.replace(target)  # atomic: two processes may compile at once
    return target


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None (logged once) where this machine cannot build or run them."""
    missing = _missing_cpu_features()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if missing:
        logger.warning("CPU training kernels are off, training will be slower: no %s", ", ".join(missing))
        return None
    if compiler is None:
        logger.warning("CPU training kernels are off, training will be slower: no C++ compiler (g++ or $CXX)")
        return None
    try:
        return ctypes.CDLL(str(_compile(Path(__file__).with_name("cpu_kernels.cpp"), compiler)))
    except (subprocess.CalledProcessError, OSError) as error:
        detail = getattr(error, "stderr", b"") or b""
        logger.warning("CPU training kernels are off, training will be slower: %s %s", error, detail.decode()[-500:])
        return None


def _loaded() -> ctypes.CDLL:
    kernels = library()
    assert kernels is not None, "ask library() before calling a kernel"
    return kernels


def _nhwc(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def _empty(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.bfloat16, memory_format=torch.channels_last)


def _like(x: Tensor) -> Tensor:
    return _empty(x.shape)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return _Pointers(*(t.data_ptr() for t in tensors))


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


# ----------------------------------------------------------------------------------------------------------------
# Depthwise convolution
# ----------------------------------------------------------------------------------------------------------------

Padding = tuple[int, int]  # rows above, columns to the left; below and to the right as many as the output needs


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, out_size: tuple[int, int], stride: int, paddings: Sequence[Padding], *weights):
        x = _nhwc(x)
        weights = tuple(w.detach().float().contiguous() for w in weights)
        images, in_channels, height, width = x.shape
        channels = weights[0].shape[0]
        geometry = _Geometry(
            images=images,
            channels=channels,
            multiplier=channels // in_channels,
            height=height,
            width=width,
            out_height=out_size[0],
            out_width=out_size[1],
            stride=stride,
            kernels=len(weights),
            threads=torch.get_num_threads(),
        )
        for i, (w, (pad_y, pad_x)) in enumerate(zip(weights, paddings, strict=True)):
            geometry.size[i], geometry.pad_y[i], geometry.pad_x[i] = w.shape[-1], pad_y, pad_x
        outputs = tuple(_empty((images, channels, *out_size)) for _ in weights)
        _loaded().depthwise_forward(ctypes.byref(geometry), _pointer(x), _pointers(weights), _pointers(outputs))
        ctx.geometry = geometry
        ctx.save_for_backward(x, *weights)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, *weights = ctx.saved_tensors
        grads_nhwc = [_nhwc(g) for g in grads]
        grad_x = _like(x) if ctx.needs_input_grad[0] else None
        grad_weights = [torch.empty_like(w) for w in weights]
        _loaded().depthwise_backward(
            ctypes.byref(ctx.geometry),
            _pointer(x),
            _pointers(weights),
            _pointers(grads_nhwc),
            None if grad_x is None else _pointer(grad_x),
            _pointers(grad_weights),
        )
        return grad_x, None, None, None, *grad_weights


def depthwise(
    x: Tensor,
    weights: Sequence[Tensor],
    stride: int = 1,
    paddings: Sequence[Padding] | None = None,
    out_size: tuple[int, int] | None = None,
) -> tuple[Tensor, ...]:
    """Up to three depthwise convolutions of one input in one go.

    Args:
        x: (N, C, H, W).
        weights: each (C * m, 1, K, K), m = 1 or 2, K of ``KERNEL_SIZES``, C * m a multiple of ``BLOCK``.
        stride: 1 or 2.
        paddings: rows above and columns left of the image, for each kernel; default K // 2 all around.
        out_size: (OH, OW); default is what symmetric padding gives.
    Returns:
        One (N, C * m, OH, OW) bfloat16 channels_last tensor for each kernel.
    """
    if paddings is None:
        paddings = [(w.shape[-1] // 2, w.shape[-1] // 2) for w in weights]
    if out_size is None:
        height, width = ((n - 1) // stride + 1 for n in x.shape[-2:])
        out_size = height, width
    return _Depthwise.apply(x, out_size, stride, paddings, *weights)


# ----------------------------------------------------------------------------------------------------------------
# Per-channel passes
# ----------------------------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[1]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, (C,) float32 each."""
    channels, rows = x.shape[1], _rows(x)
    sums = torch.zeros((2, channels), dtype=torch.float64)
    _loaded().channel_moments(_pointer(x), ctypes.c_int64(rows), channels, _pointer(sums), torch.get_num_threads())
    mean, square = sums / rows
    return mean.float(), (square - mean * mean).clamp_min(0).float()


def _moment_gradients(mean: Tensor, grad_mean: Tensor | None, grad_var: Tensor | None, rows: int):
    """Slope and offset (C,) of the input's gradient: dL/dx = x * slope + offset."""
    slope = torch.zeros_like(mean) if grad_var is None else grad_var * (2 / rows)
    offset = -slope * mean
    return slope, offset if grad_mean is None else offset + grad_mean / rows


def _inputs(tensors: Sequence[Tensor], scales: Sequence[Tensor], shift: Tensor | None = None) -> _Inputs:
    return _Inputs(
        count=len(tensors),
        channels=tensors[0].shape[1],
        rows=_rows(tensors[0]),
        data=_pointers(tensors),
        scale=_pointers(scales),
        shift=None if shift is None else shift.data_ptr(),
    )


def _apply(tensors, scales, slopes, offsets, grad: Tensor) -> list[Tensor]:
    grads = [_like(x) for x in tensors]
    _loaded().affine_sum_apply(
        ctypes.byref(_inputs(tensors, scales)),
        _pointer(grad),
        _pointers(slopes),
        _pointers(offsets),
        _pointers(grads),
        torch.get_num_threads(),
    )
    return grads


class _WithMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor):
        x = _nhwc(x)
        mean, var = _moments(x)
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor):
        x, mean = ctx.saved_tensors
        slope, offset = _moment_gradients(mean, grad_mean, grad_var, _rows(x))
        return _apply([x], [torch.ones_like(mean)], [slope], [offset], _nhwc(grad))[0]


def with_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C, H, W) itself, its mean and its biased variance per channel, (C,) float32 each.

    For batch normalisation that is folded into the weights of what follows; go on with the returned x.
    """
    return _WithMoments.apply(x)


Moments = Sequence[tuple[Tensor, Tensor]]  # (mean, biased variance), (C,) float32 each, of every input
Coefficients = tuple[Sequence[Tensor], Tensor]  # scales, one (C,) for each input, and shift (C,)
CoefficientFn = Callable[..., Coefficients]  # (moments or None, *parameters)


class _FusedBranches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, coefficient_fn: CoefficientFn, activation: Activation, training: bool, count: int, *tensors):
        inputs = [_nhwc(x) for x in tensors[:count]]
        parameters = [p.detach().requires_grad_(p.requires_grad) for p in tensors[count:]]
        moments = [_moments(x) for x in inputs] if training else None
        with torch.enable_grad():
            for mean, var in moments or []:
                mean.requires_grad_()
                var.requires_grad_()
            scales, shift = coefficient_fn(moments, *parameters)
        values = [s.detach().contiguous() for s in (*scales, shift)]
        out = _like(inputs[0])
        _loaded().affine_sum_forward(
            ctypes.byref(_inputs(inputs, values[:-1], values[-1])),
            ACTIVATIONS[activation],
            _pointer(out),
            torch.get_num_threads(),
        )
        ctx.activation, ctx.count = activation, count
        ctx.moments, ctx.parameters, ctx.coefficients = moments, parameters, (*scales, shift)
        ctx.save_for_backward(*inputs, *values)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        count = ctx.count
        inputs, scales, shift = ctx.saved_tensors[:count], ctx.saved_tensors[count:-1], ctx.saved_tensors[-1]
        grad = _nhwc(grad)
        grad_pre = grad if ctx.activation == "none" else _like(grad)
        sums = torch.zeros((count + 1, grad.shape[1]), dtype=torch.float64)
        _loaded().affine_sum_reduce(
            ctypes.byref(_inputs(inputs, scales, shift)),
            ACTIVATIONS[ctx.activation],
            _pointer(grad),
            _pointer(grad_pre),
            _pointer(sums),
            torch.get_num_threads(),
        )
        leaves = [m for pair in ctx.moments or [] for m in pair] + [p for p in ctx.parameters if p.requires_grad]
        outputs = [(c, s) for c, s in zip(ctx.coefficients, sums.float(), strict=True) if c.requires_grad]
        found: Sequence[Tensor | None] = ()
        if leaves and outputs:
            coefficients, grads = zip(*outputs, strict=True)
            found = torch.autograd.grad(coefficients, leaves, grads, allow_unused=True)
        slopes, offsets = [], []
        for i in range(count):
            mean, grads = (
                (ctx.moments[i][0].detach(), found[2 * i : 2 * i + 2]) if ctx.moments else (shift, (None,) * 2)
            )
            slope, offset = _moment_gradients(mean, *grads, rows=_rows(grad))
            slopes.append(slope)
            offsets.append(offset)
        grad_inputs = _apply(inputs, scales, slopes, offsets, grad_pre)
        rest = iter(found[2 * count :] if ctx.moments else found)
        grad_parameters = [next(rest) if p.requires_grad else None for p in ctx.parameters]
        return None, None, None, None, *grad_inputs, *grad_parameters


def fused_branches(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    coefficient_fn: CoefficientFn,
    activation: Activation = "none",
    training: bool = True,
) -> Tensor:
    """activation(sum_i scale_i * inputs_i + shift), with coefficients that may depend on the inputs' moments.

    A sum of batch-normalised branches has this form: each normalisation is an affine function of its branch, whose
    coefficients are functions of the branch's mean and variance and of the normalisation's own parameters. However
    many normalisations there are, this takes one pass over each input for its moments, one for the sum and two
    backwards; the coefficients' own gradients run through torch on (C,) vectors.

    Args:
        inputs: up to three tensors of the same shape (N, C, H, W).
        parameters: what coefficient_fn needs gradients for, float32.
        coefficient_fn: called once as coefficient_fn(moments, *parameters) with gradients on; moments is a list of
            (mean, biased variance) per input, or None when not training. Returns ([scale_i (C,)], shift (C,)).
        activation: applied to the sum.
        training: whether moments are taken.
    Returns:
        (N, C, H, W) bfloat16, channels_last.
    """
    return _FusedBranches.apply(coefficient_fn, activation, training, len(inputs), *inputs, *parameters)


# ----------------------------------------------------------------------------------------------------------------
# Activation alone, and patches for the stem
# ----------------------------------------------------------------------------------------------------------------


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor):
        x = _nhwc(x)
        out = _like(x)
        _loaded().activation_forward(
            ACTIVATIONS["gelu"],
            _pointer(x),
            _pointer(out),
            ctypes.c_int64(x.numel()),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        grad, grad_x = _nhwc(grad), _like(x)
        _loaded().activation_backward(
            ACTIVATIONS["gelu"],
            _pointer(x),
            _pointer(grad),
            _pointer(grad_x),
            ctypes.c_int64(x.numel()),
            torch.get_num_threads(),
        )
        return grad_x


def gelu(x: Tensor) -> Tensor:
    """GELU of (N, C, H, W) in its tanh form (within 5e-4 of the exact one), bfloat16 channels_last."""
    return _Gelu.apply(x)


def stem_patches(x: Tensor) -> Tensor:
    """The 3x3 patches at stride 2, zero-padded by 1, of images without gradient.

    Args:
        x: (N, 3, H, W), H and W even.
    Returns:
        (N * H/2 * W/2, 32) bfloat16: 27 values in (row, column, channel) order, then zeros.
    """
    x = _nhwc(x.detach())
    images, channels, height, width = x.shape
    if channels != 3 or height % 2 or width % 2:
        raise ValueError(f"stem patches need (N, 3, even, even) images, got {tuple(x.shape)}")
    out = torch.empty((images * (height // 2) * (width // 2), 32), dtype=torch.bfloat16)
    _loaded().stem_patches(_pointer(x), images, height, width, _pointer(out), torch.get_num_threads())
    return out


def reuse_freed_memory() -> None:
    """Let this process's allocator keep big blocks instead of returning them to the kernel (glibc; else nothing).

    Otherwise every activation tensor is mapped, cleared and unmapped anew, which costs a tenth of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
