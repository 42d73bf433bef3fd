"""Result files: one JSON a run, stamped with the commit, weights, hardware and versions that made the numbers."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from handmesh.assets import WEIGHTS_REGISTRY
from handmesh.atomic import written_whole
from handmesh.runtime import Graph

_PACKAGES = ("numpy", "opencv-python", "onnxruntime", "torch", "timm", "openvino", "nncf")


def stamp() -> dict[str, Any]:
    """Commit of this code, the embedded weights' SHA-256 (their beginnings), date, processor, cores, package versions.

    The commit is followed by "-dirty" where it lacks changes, but for those of documents and of other results.
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    weights = json.loads(WEIGHTS_REGISTRY.read_text()) if WEIGHTS_REGISTRY.is_file() else {}
    return {
        "commit": _commit(),
        "weights_sha256": {name: entry["sha256"][:12] for name, entry in weights.items()},
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def network_facts(network: Graph) -> dict[str, str]:
    """The file of the network that was measured: its name, and its SHA-256."""
    return {"weights": network.path.name, "weights_sha256": hashlib.sha256(network.path.read_bytes()).hexdigest()}


def _commit() -> str | None:
    commit = git("describe", "--always").strip()
    others = (":(top)", *(f":(top,exclude){path}" for path in ("eval/results", "*.md")))
    return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", *others) else "") or None


def git(*arguments: str) -> str:
    """What git says of this code's repository; nothing where there is no git, or where a repository lacks this code.

    A package that is installed may lie within a user's own repository, which is none of our business.
    """
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*here, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        return subprocess.run([*here, *arguments], capture_output=True, text=True, check=False).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def write_result(path: Path, facts: dict[str, Any], *, digits: int = 6) -> None:
    """Write `facts` with a stamp to a JSON file; floats are rounded to so many significant digits.

    Raises ValueError for a number that JSON does not know, such as the median of nothing.
    """
    text = json.dumps(_rounded({**facts, "stamp": stamp()}, digits), indent=1, allow_nan=False)
    with written_whole(path) as temporary:
        temporary.write_text(text + "\n")


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, digits) for item in value]
    return value


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
