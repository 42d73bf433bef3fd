"""From what a user names, files, folders and patterns, to the list of files to work on."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from handmesh.video import IMAGE_SUFFIXES, SAMPLE_CLIP, files_in, natural_order, pictures_in

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")


def find_pictures(specs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Picture files, each once, in the order of ``specs``: files, folders of pictures, and patterns such as
    ``shots/**/*.jpg``.

    A file that is not there stays in the list, so that whoever reads it can say so by name. The log warns of pictures
    in folders below a folder, which are left out. Raises ``FileNotFoundError`` for a folder without pictures and for a
    pattern that nothing matches.
    """
    return _unique(path for spec in specs for path in _matches(spec, pictures_in, IMAGE_SUFFIXES))


def find_videos(specs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Videos, as `find_pictures` finds pictures. A folder stands for the videos in it or, where there are only
    pictures in it, for one video of these; ``sample`` is the bundled clip."""
    return _unique(
        path
        for spec in specs
        for path in ([SAMPLE_CLIP] if str(spec) == "sample" else _matches(spec, _videos_in, VIDEO_SUFFIXES))
    )


def _matches(
    spec: str | os.PathLike[str], in_folder: Callable[[Path], list[Path]], suffixes: tuple[str, ...]
) -> list[Path]:
    path = Path(spec)
    if "://" in str(spec):
        raise ValueError(f"{spec} is an address: `handmesh webcam --source` plays streams; this reads files")
    if path.is_dir():
        _tell_what_lies_below(path, suffixes)
        return in_folder(path)
    if path.exists() or not glob.has_magic(str(spec)):
        return [path]
    found = [match for match in map(Path, glob.glob(str(spec), recursive=True)) if match.is_file()]
    if not found:
        raise FileNotFoundError(f"no file matches {spec}")
    return sorted(found, key=natural_order)


def _tell_what_lies_below(folder: Path, suffixes: tuple[str, ...]) -> None:
    """Warn of a folder below which there are files that it does not stand for."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as thumbnails
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in suffixes and path.parent != folder:
                _log.warning(
                    "%s stands for files in it, not for those below, such as %s: name their folders, or '%s'",
                    folder,
                    path,
                    folder / "**" / f"*{path.suffix}",
                )
                return


def _videos_in(folder: Path) -> list[Path]:
    files = files_in(folder)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        return sorted(videos, key=natural_order)
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in files):
        return [folder]
    raise FileNotFoundError(
        f"there is no video in the folder {folder} (looked for {', '.join(VIDEO_SUFFIXES)}, and for pictures)"
    )


def _unique(paths: Iterator[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))
