from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from handmesh.model.rotations import (  # noqa: E402
    rotmat_to_rotvec,
    rotmat_to_sixd,
    rotvec_to_rotmat,
    sixd_to_rotmat,
)


def awkward_rotvecs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Rotation vectors of length up to pi, most of them where formulas break."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=-1)
    axes = torch.cat((axes, torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)))
    angles = torch.tensor([0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-3, 0.1, 1.0, 2.0, 3.0, math.pi - 1e-4, math.pi - 1e-7])
    return (axes[:, None] * angles.double()[:, None]).flatten(0, 1).to(dtype)


def series_exponential(rotvec: torch.Tensor) -> torch.Tensor:
    """The plain twin: the matrix exponential of the cross-product matrix."""
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1)
    return torch.matrix_exp(rows.reshape(*rotvec.shape[:-1], 3, 3))


def test_rotvec_to_rotmat_is_the_matrix_exponential() -> None:
    rotvec = awkward_rotvecs()
    torch.testing.assert_close(rotvec_to_rotmat(rotvec), series_exponential(rotvec), atol=1e-13, rtol=0)


def test_rotvec_to_rotmat_in_float32() -> None:
    rotvec = awkward_rotvecs(torch.float32)
    expected = series_exponential(rotvec.double())
    torch.testing.assert_close(rotvec_to_rotmat(rotvec).double(), expected, atol=1e-6, rtol=0)


def test_known_answers() -> None:
    assert torch.equal(rotvec_to_rotmat(torch.zeros(3)), torch.eye(3))
    half_turn = rotvec_to_rotmat(torch.tensor([0.0, 0.0, math.pi], dtype=torch.float64))
    torch.testing.assert_close(half_turn, torch.diag(torch.tensor([-1.0, -1.0, 1.0]).double()), atol=1e-15, rtol=0)
    quarter_turn = rotvec_to_rotmat(torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64))
    x_axis = torch.tensor([1.0, 0.0, 0.0]).double()
    torch.testing.assert_close(quarter_turn @ x_axis, torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-15, rtol=0)


def test_rotmat_to_rotvec_undoes_rotvec_to_rotmat() -> None:
    rotvec = awkward_rotvecs()
    torch.testing.assert_close(rotmat_to_rotvec(rotvec_to_rotmat(rotvec)), rotvec, atol=1e-8, rtol=0)


def test_exact_half_turns_come_back_up_to_sign() -> None:
    axes = torch.cat(
        (torch.eye(3, dtype=torch.float64), torch.tensor([[0.6, 0.8, 0.0], [2 / 3, -1 / 3, 2 / 3]]).double())
    )
    rotmat = 2 * axes[:, :, None] * axes[:, None, :] - torch.eye(3, dtype=torch.float64)
    rotvec = rotmat_to_rotvec(rotmat)
    torch.testing.assert_close(rotvec.norm(dim=-1), torch.full((5,), math.pi).double())
    torch.testing.assert_close((rotvec * axes).sum(-1).abs(), torch.full((5,), math.pi).double())


def test_sixd_there_and_back() -> None:
    rotmat = rotvec_to_rotmat(awkward_rotvecs())
    torch.testing.assert_close(sixd_to_rotmat(rotmat_to_sixd(rotmat)), rotmat, atol=1e-12, rtol=0)


def test_sixd_gives_rotations_from_anything_generic() -> None:
    sixd = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotmat = sixd_to_rotmat(sixd)
    assert rotmat.shape == (2, 50, 3, 3)
    torch.testing.assert_close(rotmat @ rotmat.mT, torch.eye(3).double().expand(2, 50, 3, 3), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotmat), torch.ones(2, 50).double())
    # The first column keeps the direction of the first three numbers.
    torch.testing.assert_close(rotmat[..., 0], torch.nn.functional.normalize(sixd[..., :3], dim=-1))


def test_degenerate_sixd_is_finite_with_finite_gradient() -> None:
    sixd = torch.tensor([[0.0] * 6, [1.0, 0, 0, 2, 0, 0]], requires_grad=True)
    rotmat = sixd_to_rotmat(sixd)
    rotmat.sum().backward()
    assert sixd.grad is not None
    assert rotmat.isfinite().all()
    assert sixd.grad.isfinite().all()


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, 3.0])
def test_gradients(angle: float) -> None:
    axis = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.8], [1.0, 0.0, 0.0]]).double(), dim=-1)
    rotvec = (angle * axis).requires_grad_()
    assert torch.autograd.gradcheck(rotvec_to_rotmat, (rotvec,))
    assert torch.autograd.gradcheck(lambda v: rotmat_to_rotvec(rotvec_to_rotmat(v)), (rotvec,))


def test_gradient_at_zero_in_float32_is_finite() -> None:
    rotvec = torch.zeros(3, requires_grad=True)
    rotmat_to_rotvec(rotvec_to_rotmat(rotvec)).sum().backward()
    torch.testing.assert_close(rotvec.grad, torch.ones(3))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3)])
def test_any_leading_shape_equals_singles(shape: tuple[int, ...]) -> None:
    rotvec = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(2))
    rotmat = rotvec_to_rotmat(rotvec)
    assert rotmat.shape == (*shape, 3, 3)
    assert rotmat_to_rotvec(rotmat).shape == (*shape, 3)
    assert rotmat_to_sixd(rotmat).shape == (*shape, 6)
    assert sixd_to_rotmat(rotmat_to_sixd(rotmat)).shape == (*shape, 3, 3)
    for batched, single in zip(rotmat.reshape(-1, 3, 3), rotvec.reshape(-1, 3), strict=True):
        torch.testing.assert_close(batched, rotvec_to_rotmat(single))
