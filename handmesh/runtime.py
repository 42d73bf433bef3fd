"""A network file behind onnxruntime, OpenVINO or torch, all seen as one `Graph`.

Every file carries its own description under the metadata key "handmesh" (JSON): its kind, the size of its input and
what it was trained for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import weights_path

Runtime = Literal["onnxruntime", "openvino", "torch"]
Precision = Literal["f32", "bf16"]
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], dict[str, NDArray[Any]]]
Opened = tuple[Run, str | None]
"""How to run a network, and its description as it stands in the file."""

METADATA_KEY = "handmesh"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network ready to run: call it with named arrays, get its named outputs."""

    path: Path
    metadata: dict[str, Any]
    run: Run

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return self.run(inputs)

    def number(self, key: str) -> float:
        """A number of the file's description, or ``ValueError`` naming the file and what is missing."""
        value = self.metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f'{self.path}: its description must have a number "{key}" but has {value!r}')
        return value


def load_graph(
    name_or_path: str | Path,
    kind: str,
    *,
    runtime: Runtime = "onnxruntime",
    threads: int | None = None,
    precision: Precision = "f32",
) -> Graph:
    """Open a network, which must describe itself as of ``kind``: "hand", "hand_model" or "detector".

    ``name_or_path`` is the name of weights that come with the package, whose SHA-256 is checked, or a file.
    ``threads`` limits the processor threads of one run (``None``: the runtime's own choice). ``precision`` "bf16"
    lets OpenVINO compute in bfloat16. The runtime "torch" reads a trained network as training saves it instead of an
    ONNX file, only of kind "hand", and needs the ``train`` extra.

    Raises ``FileNotFoundError`` if there is no file, ``ValueError`` if it is empty, truncated, damaged (naming its
    SHA-256) or of another kind, and ``ImportError`` if the runtime is not installed.
    """
    if runtime not in get_args(Runtime):
        raise ValueError(f"runtime must be one of {', '.join(get_args(Runtime))}, not {runtime!r}")
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}")
    if precision != "f32" and runtime != "openvino":
        raise ValueError(f"precision {precision!r} needs runtime='openvino'; {runtime} computes in f32")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, or None for the runtime's own choice, not {threads}")
    if isinstance(name_or_path, Path) and not name_or_path.is_file():
        raise FileNotFoundError(f"no network file at {name_or_path}: check the path, or use a name such as 'fast'")
    path = weights_path(name_or_path)
    if runtime == "onnxruntime":
        run, described = _open_onnxruntime(path, threads)
    elif runtime == "openvino":
        run, described = _open_openvino(path, threads, precision)
    else:
        run, described = _open_torch(path, threads)
    metadata = _parse_description(path, described)
    if metadata.get("kind") != kind:
        raise ValueError(f"{path} is a network of kind {metadata.get('kind')!r}, but one of kind {kind!r} is needed")
    _log.debug("opened %s with %s", path, runtime)
    return Graph(path, metadata, run)


def _open_onnxruntime(path: Path, threads: int | None) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no narrower class
        raise _unreadable(path) from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        values = session.run(names, dict(inputs))
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)


def _open_openvino(path: Path, threads: int | None, precision: Precision) -> Opened:
    try:
        import openvino
    except ImportError as error:
        raise ImportError("runtime='openvino' needs the openvino package: pip install 'handmesh[openvino]'") from error
    core = openvino.Core()
    # OpenVINO computes in bfloat16 by itself where the processor can, so the precision is always said.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _unreadable(path) from error
    # OpenVINO may know one output by several names, of which only one is the file's.
    names = [(name, i) for i, output in enumerate(compiled.outputs) for name in output.get_names()]
    request = compiled.create_infer_request()

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        request.infer(dict(inputs))
        # The request's own memory is overwritten by its next run.
        return {name: np.array(request.get_output_tensor(i).data) for name, i in names}

    description = ["framework", METADATA_KEY]
    return run, model.get_rt_info(description).value if model.has_rt_info(description) else None


def _open_torch(path: Path, threads: int | None) -> Opened:
    try:
        import torch

        from handmesh.model.deploy import HAND_OUTPUTS, DeployedHand, load_torch_network
    except ImportError as error:
        raise ImportError("runtime='torch' needs torch and timm: pip install 'handmesh[train]'") from error
    if threads is not None:
        torch.set_num_threads(threads)
    network = load_torch_network(path)
    deployed = DeployedHand(network).eval()

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = deployed(torch.from_numpy(inputs["crop"]))
        return {name: tensor.numpy() for name, tensor in zip(HAND_OUTPUTS, outputs, strict=True)}

    return run, json.dumps({"kind": "hand", "input_size": network.config.input_size})


def _parse_description(path: Path, described: str | None) -> dict[str, Any]:
    if described is None:
        raise ValueError(
            f'{path} lacks the metadata "{METADATA_KEY}": it was not exported by handmesh; use `handmesh export`'
        )
    try:
        metadata = json.loads(described)
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}: its metadata "{METADATA_KEY}" is not JSON: {described[:80]!r}') from error
    if not isinstance(metadata, dict):
        raise ValueError(f'{path}: its metadata "{METADATA_KEY}" must be a JSON object, not {described[:80]!r}')
    return metadata


def _unreadable(path: Path) -> ValueError:
    content = path.read_bytes()
    return ValueError(
        f"{path} cannot be read as a network: it is damaged, truncated or no ONNX file "
        f"({len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}); fetch or export it again"
    )
