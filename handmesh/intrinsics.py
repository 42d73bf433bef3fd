"""Camera intrinsics in files: OpenCV's FileStorage (.yaml, .yml, .xml), ROS's camera_info, COLMAP's cameras.txt, and
what Python programs write as YAML or JSON.

All of them become a `Camera` with integer pixel centres; COLMAP counts them at halves.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.atomic import written_whole
from handmesh.records import Camera

MATRIX_KEYS = (
    "camera_matrix",
    "cameraMatrix",
    "Camera_Matrix",
    "intrinsic_matrix",
    "intrinsics",
    "K",
    "k",
    "M1",
    "mtx",
)
DISTORTION_KEYS = (
    "distortion_coefficients",
    "Distortion_Coefficients",
    "distCoeffs",
    "dist_coeffs",
    "dist_coeff",
    "distortion_coeffs",
    "distortion",
    "dist",
    "D",
    "d",
    "D1",
)
WIDTH_KEYS = ("image_width", "image_Width", "width", "calibImageWidth")
HEIGHT_KEYS = ("image_height", "image_Height", "height", "calibImageHeight")

PINHOLE_LENSES = ("plumb_bob", "rational_polynomial", "radtan", "radial-tangential", "opencv")
"""Names that ROS and Kalibr give to distortion as `Camera` knows it."""

#: COLMAP's camera models (its src/colmap/sensor/models.h) that a `Camera` can express, with their parameters' order.
COLMAP_MODELS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}
_DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")


def load_camera(path: str | os.PathLike[str], camera_id: int | None = None) -> Camera:
    """Read a camera.

    A ``.txt`` is COLMAP's ``cameras.txt`` (``camera_id`` picks one of several); ``.yaml``, ``.yml``, ``.xml`` and
    ``.json`` are read by OpenCV's FileStorage, under the usual names (`MATRIX_KEYS` and the others, or fx, fy, cx and
    cy), or are ROS's camera_info, of the first version or the second. They must say the size of the frame that the
    intrinsics belong to.

    Raises ``FileNotFoundError`` if there is no such file and ``ValueError`` if it cannot be read, lacks something or
    describes a lens that is no pinhole with Brown-Conrady distortion (a fisheye: undistort its frames first).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no camera file {path}: `handmesh calibrate` makes one")
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".yaml", ".yml", ".xml", ".json"):
        raise ValueError(
            f"cannot read a camera from {path.name!r}: OpenCV's and ROS's files end in .yaml, .yml, .xml or .json, "
            "COLMAP's is cameras.txt"
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return _parse_colmap(text, camera_id) if suffix == ".txt" else _parse_storage(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_camera(path: str | os.PathLike[str], camera: Camera, comments: dict[str, float | str] | None = None) -> None:
    """Write a camera in OpenCV's FileStorage format, with more numbers or words under their own keys. Of an assumed
    camera the file says that it is one (``assumed``).

    Raises ``ValueError`` unless the suffix is .yaml, .yml, .xml or .json, and ``OSError``.
    """
    import cv2

    path = Path(path)
    check_camera_suffix(path)
    # OpenCV itself says nothing of a full disk, and on Windows it takes no path beyond the code page.
    storage = cv2.FileStorage(path.suffix, cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY)
    storage.write("image_width", camera.width)
    storage.write("image_height", camera.height)
    storage.write("camera_matrix", camera.matrix)
    storage.write("distortion_coefficients", np.array(camera.distortion or (0.0,) * 5)[None])
    if camera.assumed:
        storage.write("assumed", 1)
    for key, value in (comments or {}).items():
        storage.write(key, value)
    text = storage.releaseAndGetString()
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_camera_suffix(path: Path) -> None:
    """Raise ``ValueError`` unless a camera can be written under such a name."""
    if path.suffix.lower() not in (".yaml", ".yml", ".xml", ".json"):
        raise ValueError(f"cannot write a camera to {path.name!r}: its suffix must be .yaml, .yml, .xml or .json")


def parse_camera(text: str) -> Camera:
    """A camera from a command line: a file's path, or ``FX,FY,CX,CY,WIDTH,HEIGHT`` in pixels."""
    parts = text.split(",")
    if len(parts) == 1 or Path(text).is_file():
        return load_camera(text)
    try:
        fx, fy, cx, cy, width, height = (float(part) for part in parts)
    except ValueError as error:
        raise ValueError(f"a camera is a file or FX,FY,CX,CY,WIDTH,HEIGHT (six numbers), not {text!r}") from error
    return Camera(fx, fy, cx, cy, width, height)  # pyright: ignore[reportArgumentType] (it wants whole numbers)


def _parse_colmap(text: str, camera_id: int | None) -> Camera:
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    cameras = {fields[0]: fields for fields in lines}
    if not cameras:
        raise ValueError("it names no camera; a line of COLMAP's cameras.txt is CAMERA_ID MODEL WIDTH HEIGHT PARAMS...")
    if camera_id is None and len(cameras) > 1:
        raise ValueError(
            f"it holds {len(cameras)} cameras ({', '.join(cameras)}): give camera_id, or keep the line of one"
        )
    fields = cameras.get(str(camera_id)) if camera_id is not None else next(iter(cameras.values()))
    if fields is None:
        raise ValueError(f"it has no camera {camera_id}; it has {', '.join(cameras)}")
    model = fields[1] if len(fields) > 1 else ""
    if model not in COLMAP_MODELS:
        raise ValueError(
            f"the camera model {model!r} is not one of {', '.join(COLMAP_MODELS)}: undistort the pictures first "
            "(colmap image_undistorter)"
        )
    names = COLMAP_MODELS[model]
    try:
        width, height = int(fields[2]), int(fields[3])
        given = dict(zip(names, (float(value) for value in fields[4:]), strict=True))
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"the line {' '.join(fields)!r} must be CAMERA_ID {model} WIDTH HEIGHT {' '.join(names)}"
        ) from error
    focal = given.get("f", 0.0)
    coefficients = [given.get(name, 0.0) for name in _DISTORTION]
    # The centre of COLMAP's first pixel lies at (0.5, 0.5), ours at (0, 0).
    return Camera(
        given.get("fx", focal),
        given.get("fy", focal),
        given["cx"] - 0.5,
        given["cy"] - 0.5,
        width,
        height,
        distortion=tuple(coefficients),
    )


def _parse_storage(text: str) -> Camera:
    import cv2

    text = re.sub(r"\n---\s*$", "\n", text)  # ends what `ros2 topic echo` prints
    text = re.sub(r"(?m)^(?= *- )", "  ", text)  # OpenCV wants lists to stand further in than their names
    try:
        storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    except (cv2.error, SystemError) as error:  # OpenCV's own error may arrive wrapped
        raise ValueError("it cannot be read as OpenCV's FileStorage; is it YAML, XML or JSON?") from error
    root = storage.root()
    if not root.isMap():
        raise ValueError("it cannot be read as OpenCV's FileStorage; is it YAML, XML or JSON?")
    lens = _node(root, ("distortion_model", "camera_model"))
    if lens is not None and lens.isString() and lens.string() not in ("", *PINHOLE_LENSES, "pinhole", "none"):
        raise ValueError(
            f"its lens is {lens.string()!r}, but only {', '.join(PINHOLE_LENSES)} are known: undistort the frames first"
        )
    fisheye = _node(root, ("fisheye_model",))  # OpenCV's sample writes 0 of a lens that is none
    if (fisheye is not None and _number(fisheye, "fisheye_model")) or _node(root, ("xi",)) is not None:
        raise ValueError("its lens is a fisheye or an omnidirectional one: undistort the frames first")
    fx, fy, cx, cy = _focal_and_centre(root)
    width, height = _size(root)
    coefficients = _coefficients(root)
    if len(coefficients) > 8 and not any(coefficients[8:]):
        coefficients = coefficients[:8]
    assumed = _node(root, ("assumed",))
    guessed = assumed is not None and bool(_number(assumed, "assumed"))
    return Camera(fx, fy, cx, cy, width, height, assumed=guessed, distortion=tuple(coefficients))


def _coefficients(root: Any) -> list[float]:
    """Of the distortion, in OpenCV's order; none where the file speaks of none."""
    distortion = _numbers(root, DISTORTION_KEYS)
    if distortion is not None:
        return distortion.tolist()
    single = {name: root.getNode(name) for name in _DISTORTION}
    if not single["k4"].empty() and single["p1"].empty() and single["p2"].empty():
        raise ValueError("its k1 to k4 without p1 and p2 are those of a fisheye lens: undistort the frames first")
    if any(not node.empty() for node in single.values()):
        return [0.0 if node.empty() else _number(node, name) for name, node in single.items()]
    named = re.compile(r"(?<!un)distor[ts]|dist_?coef", re.IGNORECASE)
    doubtful = [key for key in _names(root) if named.search(key) and not _is_word(root.getNode(key))]
    if doubtful:
        raise ValueError(
            f"its distortion stands under {', '.join(doubtful)}, where it is not looked for: write its coefficients "
            f"k1, k2, p1, p2, k3 under {DISTORTION_KEYS[0]}"
        )
    return []


def _focal_and_centre(root: Any) -> tuple[float, ...]:
    """fx, fy, cx and cy."""
    single = [root.getNode(name) for name in ("fx", "fy", "cx", "cy")]
    if not any(node.empty() for node in single):
        return tuple(_number(node, node.name()) for node in single)
    matrix = _numbers(root, MATRIX_KEYS)
    if matrix is None or matrix.size not in (4, 9):
        raise ValueError(
            f"it has no 3 x 3 camera matrix under {', '.join(MATRIX_KEYS)}, nor fx, fy, cx and cy; it has {_keys(root)}"
        )
    if matrix.size == 4:  # Kalibr's
        return tuple(matrix.tolist())
    K = matrix.reshape(3, 3)
    if K[2, :2].all() and not K[:2, 2].any():  # column by column, as Open3D writes it
        K = K.T
    if not np.allclose(K[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], (0, 0, 0, 0, 1), atol=1e-6 * K[0, 0]):
        raise ValueError(f"its camera matrix is no [fx 0 cx; 0 fy cy; 0 0 1] but {K.tolist()}")
    return K[0, 0], K[1, 1], K[0, 2], K[1, 2]


def _size(root: Any) -> tuple[int, int]:
    width, height = _node(root, WIDTH_KEYS), _node(root, HEIGHT_KEYS)
    if width is not None and height is not None:
        return int(_number(width, width.name())), int(_number(height, height.name()))
    pair = _numbers(root, ("image_size", "imageSize", "img_shape", "resolution"))
    if pair is None or pair.size != 2:
        raise ValueError(
            f"it does not say the size of its frames: add image_width and image_height (it has {_keys(root)})"
        )
    return int(pair[0]), int(pair[1])


def _node(root: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        node = root.getNode(key)
        if not node.empty():
            return node
    return None


def _numbers(root: Any, keys: tuple[str, ...]) -> np.ndarray | None:
    """A matrix, a (nested) list or ROS's {rows, cols, data} as a flat array."""
    import cv2

    node = _node(root, keys)
    if node is None:
        return None
    key = node.name()
    if node.isMap() and node.getNode("dt").empty() and not node.getNode("data").empty():
        node = node.getNode("data")
    if node.isMap():
        try:
            matrix = node.mat()
        except cv2.error as error:
            raise ValueError(f"its {key} is no matrix: {error.err}") from error
        return None if matrix is None else np.asarray(matrix, np.float64).ravel()
    if node.isSeq():
        rows = [node.at(i) for i in range(node.size())]
        items = [row.at(i) for row in rows for i in range(row.size())] if rows and rows[0].isSeq() else rows
        return np.array([_number(item, key) for item in items])
    if node.isNone():
        return None
    raise ValueError(f"its {key} must be a list of numbers")


def _number(node: Any, key: str) -> float:
    if not (node.isInt() or node.isReal()):  # OpenCV makes a huge number of a text
        raise ValueError(f"its {key} must hold numbers, not texts")
    return node.real()


def _keys(root: Any) -> str:
    return ", ".join(_names(root)) or "nothing"


def _is_word(node: Any) -> bool:
    """Whether a node holds no numbers, such as the name of a model."""
    return node.empty() or node.isNone() or node.isString()


def _names(root: Any) -> list[str]:
    return list(root.keys())
