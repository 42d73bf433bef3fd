"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path`, of the same suffix, that takes its place when the block ends without an error.

    Its suffix is in small letters, as numpy adds one of its own to what ends in .NPZ.
    Missing folders are made. Whatever stood at `path` stays untouched until then, and for good if the block raises.
    """
    path = Path(path).resolve()  # a symbolic link stays one
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def names_file(path: Path) -> bool:
    """Whether a path where something is to be written names a file: what has no suffix, or is a folder, is a folder."""
    return bool(path.suffix) and not path.is_dir()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a file can be written to `path`, before the work that it is to keep; makes folders."""
    _beside(Path(path).resolve()).unlink()


def _beside(path: Path) -> Path:
    """A new empty file beside another, of the same suffix. Raises OSError that names the other."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot write there: it is a folder", str(path))
    temporary = path.with_name(f".{secrets.token_hex(6)}{path.suffix.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the umask takes away
    except OSError as error:
        raise OSError(error.errno, f"cannot write there: {error.strerror}", str(path)) from error
    return temporary
