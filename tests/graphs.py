"""Tiny ONNX networks that keep the contracts of the real ones, so that tests need no trained weights.

Their "hand" is a bright square with one red and one green half: red on the left is a right hand, red on the right a
left one, so that a mirrored picture shows the other hand (`draw_hand`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

from handmesh.skeleton import FINGER_KNUCKLES

CROP_SIZE = 64
HAND_WIDTH_M = 0.1
DETECTOR_WIDTH, DETECTOR_HEIGHT, DETECTOR_STRIDE = 320, 256, 8

# An octahedron with unequal axes, wound outwards, moved off the wrist.
VERTICES = np.array(
    [
        [0.05, 0, 0],
        [-0.05, 0, 0],
        [0, 0.08, 0],
        [0, -0.08, 0],
        [0, 0, 0.02],
        [0, 0, -0.02],
    ],
    np.float32,
) + np.array([0.01, -0.06, 0.005], np.float32)
FACES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]], np.int32)


def _keypoint_offsets() -> np.ndarray:
    """(21, 2) keypoints on a unit square, upright above the wrist, without mirror symmetry."""
    rng = np.random.default_rng(7)
    offsets = rng.uniform(-0.4, 0.4, (21, 2))
    offsets[:5] = [[0.1, 0.5], [-0.5, 0.2], [0.5, -0.1], [-0.2, -0.5], [0.3, 0.3]]
    knuckles = list(FINGER_KNUCKLES)
    offsets[knuckles, 0] += offsets[0, 0] - offsets[knuckles, 0].mean()
    return offsets.astype(np.float32)


KEYPOINT_OFFSETS = _keypoint_offsets()
JOINTS = np.concatenate(
    [
        HAND_WIDTH_M * (KEYPOINT_OFFSETS - KEYPOINT_OFFSETS[0]),
        np.linspace(0.0, 0.01, 21, dtype=np.float32)[:, None],
    ],
    axis=1,
).astype(np.float32)


def random_rotations(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3, 3) rotation matrices, uniformly drawn."""
    q, r = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
    return (q * np.where(np.linalg.det(q) < 0, -1.0, 1.0)[:, None, None]).astype(np.float32)


ROTATIONS = np.concatenate([np.eye(3, dtype=np.float32)[None], random_rotations(np.random.default_rng(3), 15)])
BETAS = np.linspace(-1, 1, 10, dtype=np.float32)


def draw_hand(frame: np.ndarray, center: tuple[float, float], width: float, side: str = "right") -> np.ndarray:
    """A copy of the frame with a "hand" whose keypoints' tight box has that centre and width (whole pixels)."""
    frame = frame.copy()
    x0, y0 = round(center[0] + 0.5 - width / 2), round(center[1] + 0.5 - width / 2)
    half, width = round(width / 2), round(width)
    height_px, width_px = frame.shape[:2]
    for k, channel in enumerate((0, 1) if side == "right" else (1, 0)):
        left, right = np.clip([x0 + k * half, x0 + (half if k == 0 else width)], 0, width_px)
        top, bottom = np.clip([y0, y0 + width], 0, height_px)
        frame[top:bottom, left:right] = 0
        frame[top:bottom, left:right, channel] = 255
    return frame


class _Builder:
    """Collects the nodes of one graph; every call gives the name of its result."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], []

    def constant(self, values, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, to: str | None = None, **attributes) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def total(self, values: str, *axes: int) -> str:
        return self.op("ReduceSum", values, self.constant(axes, np.int64), keepdims=0)

    def expand(self, values: np.ndarray, count: str, to: str) -> str:
        """A constant repeated along a new first axis of length ``count`` (a 1-vector)."""
        shape = self.op("Concat", count, self.constant(np.shape(values), np.int64), axis=0)
        return self.op("Expand", self.constant(np.asarray(values)[None]), shape, to=to)

    def save(self, path: Path, inputs: dict, outputs: dict, description: dict | str | None) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "stub",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if description is not None:
            text = description if isinstance(description, str) else json.dumps(description)
            helper.set_model_props(model, {"handmesh": text})
        checker.check_model(model)
        save(model, str(path))
        return path


HAND_OUTPUTS = {
    "rotations": (16, 3, 3),
    "betas": (10,),
    "camera": (3,),
    "vertices": (len(VERTICES), 3),
    "joints": (21, 3),
    "joints_2d": (21, 2),
    "presence": (),
    "right": (),
}
HAND_DESCRIPTION = {"kind": "hand", "input_size": CROP_SIZE, "crop_scale": 1.6, "hand_model": "stub"}


def save_small_network(path: Path, nodes: list, inputs: list, outputs: list, weights: dict, *, store=None) -> Path:
    """A network of these nodes and float32 weights, which `store` may change, that says it reads hands of 16 px."""
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if store is not None:
        store(model)
    helper.set_model_props(model, {"handmesh": json.dumps({"kind": "hand", "input_size": 16})})
    save(model, str(path))
    return path


def build_hand_graph(path: Path, *, description: dict | str | None = None, **fixed) -> Path:
    """A hand network: 2D keypoints, presence and side are read off the drawn square, the rest is constant.

    ``fixed`` replaces outputs by constants, e.g. ``presence=0.2``; ``None`` leaves an output out.
    """
    b = _Builder()
    pixels = b.op("Cast", "crop", to=None)
    b.nodes[-1].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    count = b.op("Slice", b.op("Shape", "crop"), b.constant([0], np.int64), b.constant([1], np.int64))
    constants = {
        "rotations": ROTATIONS,
        "betas": BETAS,
        "camera": np.array([5.0, 0.0, 0.0], np.float32),
        "vertices": VERTICES,
        "joints": JOINTS,
        **fixed,
    }
    grid = (2.0 * np.arange(CROP_SIZE) + 1.0) / CROP_SIZE - 1.0
    places = np.stack(np.meshgrid(grid, grid), axis=-1)[None]  # (1, S, S, 2)
    middles, masses = [], []
    for channel in (0, 1):
        light = b.op("Gather", pixels, b.constant([channel], np.int64), axis=3)  # (N, S, S, 1)
        light = b.op("Relu", b.op("Sub", light, b.constant(64.0)))
        mass = b.total(light, 1, 2)  # (N, 1)
        moment = b.total(b.op("Mul", light, b.constant(places)), 1, 2)  # (N, 2)
        middles.append(b.op("Div", moment, b.op("Add", mass, b.constant(1e-3))))
        masses.append(mass)
    apart = b.op("Sub", middles[1], middles[0])
    shift = b.op("Gather", apart, b.constant(0, np.int64), axis=1)  # (N,) from red to green
    if "joints_2d" not in fixed:
        width = b.op("Mul", b.op("Abs", shift), b.constant(2.0))
        width = b.op("Unsqueeze", width, b.constant([1, 2], np.int64))
        center = b.op("Mul", b.op("Add", *middles), b.constant(0.5))
        center = b.op("Unsqueeze", center, b.constant([1], np.int64))
        spread = b.op("Mul", width, b.constant(KEYPOINT_OFFSETS[None]))
        b.op("Add", center, spread, to="joints_2d")
    if "presence" not in fixed:
        light = b.op("Squeeze", b.op("Add", *masses), b.constant([1], np.int64))
        share = b.op("Div", light, b.constant(191.0 * CROP_SIZE**2))
        b.op("Sigmoid", b.op("Mul", b.op("Sub", share, b.constant(0.1)), b.constant(40.0)), to="presence")
    if "right" not in fixed:
        b.op("Sigmoid", b.op("Mul", shift, b.constant(20.0)), to="right")
    for name, value in constants.items():
        if value is not None:
            b.expand(np.asarray(value, np.float32), count, to=name)
    outputs = {
        name: ("N", *(np.shape(constants[name]) if name in constants else shape))
        for name, shape in HAND_OUTPUTS.items()
        if fixed.get(name, 0) is not None
    }
    inputs = {"crop": (TensorProto.UINT8, ("N", CROP_SIZE, CROP_SIZE, 3))}
    return b.save(path, inputs, outputs, description if description is not None else HAND_DESCRIPTION)


def build_pose_graph(path: Path) -> Path:
    """A hand model that only turns as a whole: at ``ROTATIONS`` and any betas it gives ``VERTICES`` and ``JOINTS``."""
    b = _Builder()
    turn = b.op("Gather", "rotations", b.constant(0, np.int64), axis=1)
    turn = b.op("Transpose", turn, perm=[0, 2, 1])
    still = b.op("Mul", b.op("Slice", "betas", *(b.constant([v], np.int64) for v in (0, 1, 1))), b.constant(0.0))
    still = b.op("Unsqueeze", still, b.constant([1], np.int64))
    for name, points in (("vertices", VERTICES), ("joints", JOINTS)):
        b.op("Add", b.op("MatMul", b.constant(points), turn), still, to=name)
    inputs = {
        "rotations": (TensorProto.FLOAT, ("N", 16, 3, 3)),
        "betas": (TensorProto.FLOAT, ("N", 10)),
    }
    outputs = {"vertices": ("N", len(VERTICES), 3), "joints": ("N", 21, 3)}
    return b.save(path, inputs, outputs, {"kind": "hand_model"})


def build_detector_graph(path: Path, *, width_px: int = 64) -> Path:
    """A detector of drawn squares about ``width_px`` wide in its own 320 x 256 input."""
    b = _Builder()
    pixels = b.op("Cast", "frame", to=None)
    b.nodes[-1].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    planes = b.op("Transpose", pixels, perm=[0, 3, 1, 2])
    bright = b.op("Relu", b.op("Sub", planes, b.constant(64.0)))
    kernels = np.zeros((2, 3, width_px, width_px), np.float32)
    kernels[0, :2] = 1.0
    kernels[1, 0, :, : width_px // 2] = kernels[1, 1, :, width_px // 2 :] = 1.0
    kernels[1, 1, :, : width_px // 2] = kernels[1, 0, :, width_px // 2 :] = -1.0
    pad = (width_px - DETECTOR_STRIDE) // 2
    found = b.op(
        "Conv",
        bright,
        b.constant(kernels / (191.0 * width_px**2)),
        strides=[DETECTOR_STRIDE] * 2,
        pads=[pad] * 4,
    )
    heat, redness = (b.op("Gather", found, b.constant([k], np.int64), axis=1) for k in (0, 1))
    peak = b.op("MaxPool", heat, kernel_shape=[3, 3], pads=[1] * 4)
    b.op("Where", b.op("Equal", heat, peak), heat, b.constant(0.0), to="heatmap")
    b.op("Sigmoid", b.op("Mul", redness, b.constant(10.0)), to="right")
    reach = b.op("Mul", b.op("Concat", *[heat] * 4, axis=1), b.constant(0.0))
    b.op("Add", reach, b.constant(0.5 * width_px), to="boxes")
    rows, columns = DETECTOR_HEIGHT // DETECTOR_STRIDE, DETECTOR_WIDTH // DETECTOR_STRIDE
    description = {
        "kind": "detector",
        "input_width": DETECTOR_WIDTH,
        "input_height": DETECTOR_HEIGHT,
        "stride": DETECTOR_STRIDE,
    }
    inputs = {"frame": (TensorProto.UINT8, (1, DETECTOR_HEIGHT, DETECTOR_WIDTH, 3))}
    outputs = {"heatmap": (1, 1, rows, columns), "boxes": (1, 4, rows, columns), "right": (1, 1, rows, columns)}
    return b.save(path, inputs, outputs, description)
