"""A network file behind onnxruntime, OpenVINO or torch, all seen as one `Graph`.

Every file carries its own description under the metadata key "handmesh" (JSON): its kind, the size of its input,
what it was trained for and, where it is not single, the precision in which it computes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from handmesh.assets import HandModelArrays, weights_path, weights_registry

Runtime = Literal["onnxruntime", "openvino", "torch"]
Precision = Literal["f32", "bf16", "int8"]
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], dict[str, NDArray[Any]]]
Opened = tuple[Run, str | None]
"""How to run a network, and its description as it stands in the file."""

METADATA_KEY = "handmesh"

INT8_SUFFIX = "_int8"
"""The int8 twin of the weights ``fast`` has the name ``fast_int8``."""

MAX_THREADS = 4
"""Networks this small gain nothing from more."""

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""onnxruntime's names of devices."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network ready to run: call it with named arrays, get its named outputs."""

    path: Path
    metadata: dict[str, Any]
    run: Run

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return self.run(inputs)

    def __reduce__(self) -> Any:
        raise TypeError("a network cannot go to another process: open one there, such as by from_pretrained")

    def number(self, key: str, default: float | None = None) -> float:
        """A number of the file's description or the ``default``, else ``ValueError`` naming the file and the number."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f'{self.path}: its description must have a number "{key}" but has {value!r}')
        return value


def load_graph(
    name_or_path: str | Path,
    kind: str,
    *,
    runtime: Runtime = "onnxruntime",
    threads: int | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    hand_model: HandModelArrays | None = None,
) -> Graph:
    """Open a network, which must describe itself as of ``kind``: "hand", "hand_model" or "detector".

    ``name_or_path`` is the name of weights that come with the package, whose SHA-256 is checked, or a file.
    ``threads`` limits the processor threads of one run (``None``: the processor's cores, at most ``MAX_THREADS``).

    ``precision`` "int8" opens the quantised twin of weights given by name, "f32" the plain ones, and "bf16" lets
    OpenVINO compute in bfloat16. ``None`` takes int8 with onnxruntime on a processor where the weights have such a
    twin, else f32. A file given by its path computes as it was exported.

    ``device`` is "cpu", or "cuda", "coreml" or "directml" for an onnxruntime built with that provider, or a device of
    OpenVINO ("gpu", "npu") or of torch ("cuda", "mps").

    The runtime "torch" reads a trained network as training saves it, or an exported one that computes in f32; only of
    kind "hand", and it needs the ``train`` extra. It poses ``hand_model`` (``None``: the embedded one); for the
    other runtimes it is part of the file.

    Raises ``FileNotFoundError`` if there is no file, ``ValueError`` if it is empty, truncated, damaged (naming its
    SHA-256), of another kind or has no int8 twin, or if there is no such device, and ``ModuleNotFoundError`` if the
    runtime is not installed.
    """
    if runtime not in get_args(Runtime):
        raise ValueError(f"runtime must be one of {', '.join(get_args(Runtime))}, not {runtime!r}")
    if precision is not None and precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}")
    if precision == "bf16" and runtime != "openvino":
        raise ValueError("precision 'bf16' needs runtime='openvino'; the others compute in f32 or int8")
    device = device.lower()
    if precision == "bf16" and device != "cpu":
        raise ValueError(f"precision 'bf16' is for device 'cpu', not {device!r}: leave it out")
    if precision == "int8" and runtime == "torch":
        raise ValueError("precision 'int8' needs runtime='onnxruntime' or 'openvino'; torch computes in f32")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, or None for the processor's cores, not {threads}")
    if isinstance(name_or_path, Path) and not name_or_path.is_file():
        raise FileNotFoundError(f"no network file at {name_or_path}: check the path, or use a name such as 'fast'")
    path = weights_path(_twin(name_or_path, runtime, precision, device))
    threads = threads or default_threads()
    if runtime == "onnxruntime":
        run, described = _open_onnxruntime(path, threads, device)
    elif runtime == "openvino":
        run, described = _open_openvino(path, threads, precision or "f32", device)
    else:
        run, described = _open_torch(path, threads, device, hand_model)
    metadata = _parse_description(path, described)
    if metadata.get("kind") != kind:
        raise ValueError(f"{path} is a network of kind {metadata.get('kind')!r}, but one of kind {kind!r} is needed")
    stored = metadata.get("precision", "f32")
    if precision is not None and (precision == "int8") != (stored == "int8"):
        raise ValueError(f"{path} computes in {stored}, not in {precision}: give the file of that precision")
    _log.debug("opened %s with %s", path, runtime)
    return Graph(path, metadata, run)


def default_threads() -> int:
    """The processor's cores that this process may use, at most ``MAX_THREADS``."""
    return min(usable_cores(), MAX_THREADS)


def usable_cores() -> int:
    """The processor's cores that this process may use, within the quota of its container, if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _container_quota() or cores)


def _container_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The cores' worth of time, rounded up, that Linux's control groups of either version allow; None for any."""
    version_1 = root / "cpu" / "cpu.cfs_quota_us", root / "cpu" / "cpu.cfs_period_us"
    for files in ((root / "cpu.max",), version_1):
        try:
            quota, period = (int(word) for file in files for word in file.read_text().split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return math.ceil(quota / period)
    return None


def _twin(name_or_path: str | Path, runtime: Runtime, precision: Precision | None, device: str) -> str | Path:
    """The int8 twin of weights known by name, where it is asked for or serves best."""
    registry = weights_registry()
    if str(name_or_path) not in registry or registry[str(name_or_path)].get("precision") == "int8":
        return name_or_path
    twin = f"{name_or_path}{INT8_SUFFIX}"
    if precision == "int8" and twin not in registry:
        raise ValueError(f"the weights {name_or_path!r} have no int8 twin: use precision='f32'")
    wanted = precision == "int8" or (precision is None and runtime == "onnxruntime" and device == "cpu")
    return twin if wanted and twin in registry else name_or_path


def _open_onnxruntime(path: Path, threads: int, device: str) -> Opened:
    import onnxruntime

    if device not in PROVIDERS:
        raise ValueError(f"device must be one of {', '.join(PROVIDERS)} with onnxruntime, not {device!r}")
    provider, available = PROVIDERS[device], onnxruntime.get_available_providers()
    if provider not in available:
        raise ValueError(f"this onnxruntime has no {provider} for device {device!r}, only {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Between two runs the workers sleep: the processor belongs to camera and display, or to the next network.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = [provider] if device == "cpu" else [provider, PROVIDERS["cpu"]]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's own errors share no narrower class
        if device != "cpu":
            raise ValueError(f"onnxruntime cannot run {path} on the device {device!r}: {error}") from error
        raise _unreadable(path, error) from error
    if provider not in session.get_providers():  # it has only warned, and would compute on the processor
        raise ValueError(
            f"onnxruntime could not start its {provider} for device {device!r}: are the device's driver and libraries "
            "installed? device='cpu' needs none"
        )
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        values = session.run(names, dict(inputs))
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)


def _open_openvino(path: Path, threads: int, precision: Precision, device: str) -> Opened:
    try:
        import openvino
    except ImportError as error:
        raise ModuleNotFoundError(
            "runtime='openvino' needs the openvino package: pip install 'handmesh[openvino]'"
        ) from error
    core = openvino.Core()
    kinds = {name.split(".")[0] for name in core.available_devices}
    if device.upper() not in kinds:
        raise ValueError(f"OpenVINO sees no device {device!r} here, only {', '.join(sorted(kinds)).lower()}")
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device in ("cpu", "gpu"):
        # By itself OpenVINO computes in half precision where it can, so the precision is always said; what a quantised
        # graph leaves in float stays single.
        settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
    if device == "cpu":
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    try:
        compiled = core.compile_model(model, device.upper(), settings)
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot run {path} on the device {device!r}: {error}") from error
    # OpenVINO may know one output by several names, of which only one is the file's.
    names = [(name, i) for i, output in enumerate(compiled.outputs) for name in output.get_names()]
    request = compiled.create_infer_request()

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        request.infer(dict(inputs))
        # The request's own memory is overwritten by its next run.
        return {name: np.array(request.get_output_tensor(i).data) for name, i in names}

    description = ["framework", METADATA_KEY]
    return run, model.get_rt_info(description).value if model.has_rt_info(description) else None


def _open_torch(path: Path, threads: int, device: str, hand_model: HandModelArrays | None) -> Opened:
    try:
        import torch

        from handmesh.model.deploy import HAND_OUTPUTS, DeployedHand, description_of, load_torch_network, read_graph
    except ImportError as error:
        raise ModuleNotFoundError("runtime='torch' needs torch and timm: pip install 'handmesh[train]'") from error
    torch.set_num_threads(threads)
    network = load_torch_network(path, hand_model)
    try:
        deployed = DeployedHand(network).eval().to(device)
    except (RuntimeError, AssertionError) as error:  # which of them depends on how torch was built
        raise ValueError(f"torch cannot use the device {device!r} here: {error}") from error

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = deployed(torch.from_numpy(inputs["crop"]).to(device))
        return {name: tensor.cpu().numpy() for name, tensor in zip(HAND_OUTPUTS, outputs, strict=True)}

    described = description_of(read_graph(path)) if path.suffix == ".onnx" else {}
    return run, json.dumps({**described, "kind": "hand", "input_size": network.config.input_size})


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


def _unreadable(path: Path, error: Exception) -> ValueError:
    if path.suffix == ".pt":
        return ValueError(f"{path} is a checkpoint: open it with runtime 'torch', or `handmesh export` it first")
    content = path.read_bytes()
    return ValueError(
        f"{path} cannot be read as a network: it is damaged, truncated, no ONNX file or one for a newer runtime "
        f"({len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}); fetch or export it again ({error})"
    )
