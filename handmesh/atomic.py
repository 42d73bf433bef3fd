"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path`, of the same suffix, that takes its place when the block ends without an error.

    Its suffix is in small letters, as numpy adds one of its own to what ends in .NPZ.
    Missing folders are made. Whatever stood at `path` stays untouched until then, and for good if the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix.lower())
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
