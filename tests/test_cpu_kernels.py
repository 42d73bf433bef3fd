"""The CPU training kernels against plain float32 torch."""

import copy
import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.models import _efficientnet_blocks as lite_blocks
from timm.models import fastvit
from timm.utils.model import reparameterize_model
from torch import nn

from handmesh.training import cpu_ops
from handmesh.training.cpu_kernels import accelerate, restore

ROUNDING = 2**-8  # relative spacing of bfloat16: one rounding of inputs and one of outputs
DEEP = 0.05  # roundings add up over some thirty layers; stock bfloat16 autocast is no better

needs_kernels = pytest.mark.skipif(cpu_ops.library() is None, reason="needs g++ and a CPU with avx512_bf16")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rounded(*shape: int) -> torch.Tensor:
    """Normal values that bfloat16 holds exactly, channels_last."""
    x = torch.randn(shape).bfloat16().float()
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.detach().float() - b.detach()).norm() / b.detach().norm().clamp_min(1e-12)).item()


def gradients(outputs, inputs, seeds):
    return torch.autograd.grad(outputs, inputs, [s.to(o.dtype) for o, s in zip(outputs, seeds, strict=True)])


# --- single operations --------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize(
    ("channels", "multiplier", "kernels", "stride", "size"),
    [
        (48, 1, (7,), 1, (16, 16)),
        (16, 1, (3,), 1, (5, 9)),
        (16, 1, (5,), 1, (2, 3)),  # smaller than the kernel
        (16, 1, (1,), 1, (4, 4)),
        (32, 1, (3, 1), 2, (16, 16)),
        (16, 1, (5,), 2, (7, 11)),
        (32, 2, (7, 3), 2, (16, 12)),
        (32, 2, (3, 1), 1, (4, 4)),
        (16, 1, (7, 5, 3), 2, (1, 1)),  # one pixel
    ],
)
def test_depthwise_convolutions_and_gradients_equal_torch(channels, multiplier, kernels, stride, size):
    x = rounded(3, channels // multiplier, *size).requires_grad_()
    weights = [torch.randn(channels, 1, k, k, requires_grad=True) for k in kernels]
    outputs = cpu_ops.depthwise(x, weights, stride)
    plain = [F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2, groups=x.shape[1]) for w in weights]
    seeds = [rounded(*p.shape) for p in plain]
    fast_grads, plain_grads = gradients(outputs, [x, *weights], seeds), gradients(plain, [x, *weights], seeds)
    for fast, slow in zip([*outputs, *fast_grads], [*plain, *plain_grads], strict=True):
        assert fast.shape == slow.shape
        assert distance(fast, slow) < ROUNDING


@needs_kernels
@pytest.mark.parametrize("act", [nn.Identity(), nn.GELU(), nn.ReLU6()])
def test_fused_branches_equal_their_formula(act):
    name: cpu_ops.Activation = {"Identity": "none", "GELU": "gelu", "ReLU6": "relu6"}[type(act).__name__]
    inputs = [(rounded(4, 24, 6, 5) + i).bfloat16().float().requires_grad_() for i in range(3)]
    gamma = torch.rand(24, requires_grad=True)

    def coefficients(moments, gamma):
        scales = [gamma * (i + 1) / (var + 0.1).sqrt() for i, (_, var) in enumerate(moments)]
        return scales, 3 - sum(mean * s for (mean, _), s in zip(moments, scales, strict=True))

    fast = cpu_ops.fused_branches(inputs, [gamma], coefficients, name)
    moments = [(x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) for x in inputs]
    scales, shift = coefficients(moments, gamma)
    plain = act(sum(x * s.view(-1, 1, 1) for x, s in zip(inputs, scales, strict=True)) + shift.view(-1, 1, 1))
    seeds = [rounded(*plain.shape)]
    assert distance(fast, plain) < ROUNDING
    for a, b in zip(
        gradients([fast], [*inputs, gamma], seeds), gradients([plain], [*inputs, gamma], seeds), strict=True
    ):
        assert distance(a, b) < 2 * ROUNDING


@needs_kernels
def test_moments_carry_gradients():
    x = rounded(4, 16, 5, 3).requires_grad_()
    _, *fast = cpu_ops.with_moments(x)
    plain = [x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)]
    seeds = [torch.randn(16), torch.randn(16)]
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert distance(*gradients(fast, [x], seeds), *gradients(plain, [x], seeds)) < ROUNDING


@needs_kernels
def test_moments_survive_a_mean_far_from_zero():
    x = (rounded(8, 16, 32, 32) + 100).bfloat16().float()
    _, _, var = cpu_ops.with_moments(x)
    torch.testing.assert_close(var, x.double().var((0, 2, 3), unbiased=False).float(), rtol=1e-2, atol=0)


@needs_kernels
def test_gelu_is_within_rounding_of_the_exact_one():
    x = torch.linspace(-20, 20, 16 * 400).view(1, 16, 20, 20).bfloat16().float().requires_grad_()
    fast, exact = cpu_ops.gelu(x), F.gelu(x)
    torch.testing.assert_close(fast.float(), exact, rtol=ROUNDING, atol=1e-3)
    seeds = [torch.ones_like(exact)]
    fast_slope, exact_slope = gradients([fast], [x], seeds)[0], gradients([exact], [x], seeds)[0]
    torch.testing.assert_close(fast_slope, exact_slope, rtol=ROUNDING, atol=3e-3)


@needs_kernels
def test_stem_patches_are_unfolded_images():
    x = rounded(2, 3, 6, 10)
    unfolded = F.unfold(x, 3, padding=1, stride=2).view(2, 3, 9, 15)  # channel, tap, pixel
    expected = unfolded.permute(0, 3, 2, 1).reshape(30, 27)
    patches = cpu_ops.stem_patches(x)
    assert torch.equal(patches[:, :27].float(), expected)
    assert not patches[:, 27:].any()


# --- whole networks -----------------------------------------------------------------------------------------------


def small_fastvit() -> nn.Module:
    """Every kind of FastViT layer, small, with no parameter at a value that hides mistakes."""
    net = fastvit.FastVit(
        layers=(2, 1, 1, 1),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        embed_dims=(16, 32, 64, 64),
        downsamples=(False, True, True, False),
        pos_embs=(None, None, None, partial(fastvit.RepConditionalPosEnc, spatial_shape=(7, 7))),
        num_classes=0,
        layer_scale_init_value=0.5,
    )
    return unsettle(net)


def unsettle(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def run(net: nn.Module, x: torch.Tensor, autocast: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(x)
    torch.manual_seed(0)
    (out.float() * torch.randn(out.shape)).sum().backward()
    return out


def small_lite() -> nn.Module:
    """EfficientNet-Lite's stem and blocks, with TensorFlow's padding."""
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.norm_act import BatchNormAct2d

    keep = {"act_layer": nn.ReLU6, "pad_type": "same"}
    return unsettle(
        nn.Sequential(
            Conv2dSame(3, 32, 3, 2, bias=False),
            BatchNormAct2d(32, act_layer=nn.ReLU6),
            lite_blocks.DepthwiseSeparableConv(32, 16, **keep),
            lite_blocks.InvertedResidual(16, 24, 3, stride=2, exp_ratio=6.0, **keep),
            lite_blocks.InvertedResidual(24, 24, 3, exp_ratio=6.0, **keep),
            lite_blocks.InvertedResidual(24, 40, 5, stride=2, exp_ratio=6.0, **keep),
            lite_blocks.InvertedResidual(40, 40, 5, exp_ratio=6.0, **keep),
        )
    )


def gradient_table(net: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients but those that are rounding alone: a normalisation undoes the scale of a depthwise 1x1 weight."""
    return {
        name: p.grad.flatten()
        for name, p in net.named_parameters()
        if p.grad is not None and not (p.dim() == 4 and p.numel() == len(p))
    }


@needs_kernels
@pytest.mark.parametrize("build", [small_fastvit, small_lite])
@pytest.mark.parametrize("training", [True, False])
def test_accelerated_networks_learn_like_stock_ones(build, training):
    stock = build().train(training)
    halved, fast = copy.deepcopy(stock), accelerate(copy.deepcopy(stock))
    x = rounded(16, 3, 64, 64)
    # Stock torch gets contiguous images: its own depthwise gradients may crash in channels_last.
    expected = run(stock, x.contiguous(), autocast=False)
    run(halved, x.contiguous(), autocast=True)
    assert distance(run(fast, x, autocast=True), expected) < DEEP
    exact, stock_bf16, found = gradient_table(stock), gradient_table(halved), gradient_table(fast)
    assert exact.keys() == found.keys()
    for name, grad in exact.items():
        error, usual = (1 - F.cosine_similarity(grad, g[name], dim=0).item() for g in (found, stock_bf16))
        assert error < max(0.01, 2 * usual), name
    for (name, a), b in zip(stock.named_buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=0.03, atol=0.01, msg=lambda text, name=name: f"{name}: {text}")


@needs_kernels
def test_accelerated_modules_keep_the_state_dict_and_float32_results():
    stock = small_fastvit().eval()
    fast = accelerate(copy.deepcopy(stock))
    assert type(fast.stages[0].blocks[0]) is not type(stock.stages[0].blocks[0])  # pyright: ignore
    assert list(stock.state_dict()) == list(fast.state_dict())
    small_fastvit().load_state_dict(fast.state_dict(), strict=True)
    x = rounded(2, 3, 64, 64)
    assert torch.equal(fast(x), stock(x))
    assert torch.equal(copy.deepcopy(fast)(x), stock(x))
    folded = reparameterize_model(fast)
    torch.testing.assert_close(folded(x), stock(x), rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert distance(folded(x), stock(x)) < DEEP


@needs_kernels
def test_restore_undoes_accelerate():
    net = small_fastvit()
    classes = [type(m) for m in net.modules()]
    accelerate(accelerate(net))
    assert [type(m) for m in restore(net).modules()] == classes


@needs_kernels
def test_input_gradient_flows_through_the_stem():
    net = accelerate(small_fastvit())
    x = rounded(2, 3, 64, 64).requires_grad_()
    run(net, x, autocast=True)
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_without_a_compiler_modules_stay_stock(monkeypatch, caplog):
    monkeypatch.setattr(cpu_ops, "_missing_cpu_features", list)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert cpu_ops.library.__wrapped__() is None
    assert "no C++ compiler" in caplog.text
    monkeypatch.setattr(cpu_ops, "library", lambda: None)
    net = small_fastvit()
    assert {type(m) for m in accelerate(net).modules()} == {type(m) for m in small_fastvit().modules()}


def test_without_the_instructions_kernels_are_off(monkeypatch, caplog):
    monkeypatch.setattr(cpu_ops, "_missing_cpu_features", lambda: ["avx512_bf16"])
    with caplog.at_level(logging.WARNING):
        assert cpu_ops.library.__wrapped__() is None
    assert "avx512_bf16" in caplog.text
