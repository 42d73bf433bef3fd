"""Rotations in torch: rotation vector, matrix and the continuous 6D form, for any leading batch shape.

All functions keep dtype and device, write into no argument and have finite gradients everywhere, zero included.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotvec_to_rotmat(rotvec: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in radians to matrices (..., 3, 3), by Rodrigues' formula."""
    angle_sq = (rotvec * rotvec).sum(-1, keepdim=True)[..., None]  # (..., 1, 1)
    small = angle_sq < _small_angle_sq(rotvec.dtype)
    angle = torch.where(small, torch.ones_like(angle_sq), angle_sq).sqrt()
    # sin(a)/a and (1 - cos a)/a^2; the latter through the half angle, which does not cancel.
    sinc = torch.where(small, 1 - angle_sq / 6, angle.sin() / angle)
    half_sinc = torch.where(small, 1 - angle_sq / 24, (angle / 2).sin() / (angle / 2))
    K = _cross_matrix(rotvec)  # (..., 3, 3)
    identity = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return identity + sinc * K + 0.5 * half_sinc * half_sinc * (K @ K)


def rotmat_to_rotvec(rotmat: Tensor) -> Tensor:
    """Matrices (..., 3, 3) to rotation vectors (..., 3) in radians, of length at most pi.

    Goes through the unit quaternion whose largest component is solved first (Shepperd, "Quaternion from rotation
    matrix", 1978), so it is exact near half turns too. At an exact half turn either sign of the axis may come back.
    """
    quaternion = _rotmat_to_quaternion(rotmat)  # (..., 4) as w, x, y, z with w >= 0
    w, xyz = quaternion[..., :1], quaternion[..., 1:]
    length_sq = (xyz * xyz).sum(-1, keepdim=True)
    small = length_sq < _small_angle_sq(rotmat.dtype)
    length = torch.where(small, torch.ones_like(length_sq), length_sq).sqrt()
    # angle / sin(angle / 2); near zero w is 1 to first order, hence the series in length^2.
    scale = torch.where(small, 2 + length_sq / 3, 2 * torch.atan2(length, w) / length)
    return scale * xyz


def sixd_to_rotmat(sixd: Tensor) -> Tensor:
    """6D rotations (..., 6) to matrices (..., 3, 3).

    The six numbers are the first and then the second *column* of the matrix before Gram-Schmidt (Zhou et al., "On the
    Continuity of Rotation Representations in Neural Networks", CVPR 2019). If a column is zero, or both are parallel,
    the result is finite but no rotation.
    """
    first, second = sixd[..., :3], sixd[..., 3:]
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y)), dim=-1)


def rotmat_to_sixd(rotmat: Tensor) -> Tensor:
    """Matrices (..., 3, 3) to their first two columns (..., 6): the inverse of `sixd_to_rotmat`."""
    return torch.cat((rotmat[..., 0], rotmat[..., 1]), dim=-1)


def _small_angle_sq(dtype: torch.dtype) -> float:
    """Squared angle below which the two-term series is exact to the dtype's rounding."""
    return torch.finfo(dtype).eps ** 0.5 * 1e-2


def _cross_matrix(vector: Tensor) -> Tensor:
    """(..., 3) to the matrix (..., 3, 3) of the cross product with it."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))


def _rotmat_to_quaternion(rotmat: Tensor) -> Tensor:
    """(..., 3, 3) to unit quaternions (..., 4) as w, x, y, z with w >= 0."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotmat.flatten(-2).unbind(-1)
    # Row k is 4 q_k (w, x, y, z): each is the whole quaternion, scaled by its own k-th component.
    candidates = torch.stack(
        (
            torch.stack((1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01), dim=-1),
            torch.stack((m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20), dim=-1),
            torch.stack((m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m21 + m12), dim=-1),
            torch.stack((m10 - m01, m02 + m20, m21 + m12, 1 - m00 - m11 + m22), dim=-1),
        ),
        dim=-2,
    )  # (..., 4, 4)
    largest = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)  # (...,)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    chosen = candidates.gather(-2, index).squeeze(-2)  # (..., 4)
    chosen = torch.where(chosen[..., :1] < 0, -chosen, chosen)
    return torch.nn.functional.normalize(chosen, dim=-1)
