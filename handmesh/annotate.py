"""Pictures and videos in, the same with their hands drawn out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from handmesh.atomic import check_writable, names_file
from handmesh.clip import Clip
from handmesh.clip_export import check_clip_suffix, export_clip
from handmesh.export import WRITERS, export_hands
from handmesh.keypoints import KeypointOrder
from handmesh.render import Overlay, draw_labels
from handmesh.video import FrameSource, VideoWriter, read_picture, write_picture

if TYPE_CHECKING:
    from handmesh.estimator import HandMeshEstimator
    from handmesh.records import HandMesh
    from handmesh.tracker import HandTracker

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
        frames: read.
        frames_with_hand: in which at least one mesh was drawn.
        tracking_s: seconds spent on finding and following hands.
        elapsed_s: seconds for everything, reading, drawing and writing too.
        saved: files or the folder of hands that were written.
    """

    frames: int
    frames_with_hand: int
    tracking_s: float
    elapsed_s: float
    saved: tuple[Path, ...] = ()

    @property
    def fps(self) -> float:
        """Frames a second, everything counted; 0 where there was none."""
        return self.frames / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def tracking_ms(self) -> float:
        """Milliseconds of tracking a frame; 0 where there was none."""
        return 1000 * self.tracking_s / self.frames if self.frames else 0.0


def annotate_picture(
    estimator: HandMeshEstimator,
    picture: Path,
    output: Path,
    overlay: Overlay,
    save: Path | None = None,
) -> list[HandMesh]:
    """Draw the hands of a picture into another, and write their meshes to the file `save` if there are any.

    Raises:
        FileNotFoundError, ValueError: the picture cannot be read, or a suffix is unknown.
    """
    frame = read_picture(picture)
    hands = estimator(frame)
    canvas = overlay.draw(frame, hands)
    draw_labels(canvas, hands)
    write_picture(output, canvas)
    if save is not None and hands:
        export_hands(hands, save)
    return hands


def annotate_video(
    tracker: HandTracker,
    source: FrameSource,
    output: Path,
    overlay: Overlay,
    save: Path | None = None,
    save_suffix: str = ".npz",
    max_frames: int | None = None,
    on_frame: Callable[[int], None] | None = None,
    keypoints: KeypointOrder = "freihand",
) -> VideoReport:
    """Draw the hands of a video's frames into an .mp4. Ctrl-C completes the files with what has come so far first.

    Args:
        tracker: starts afresh.
        source: what to read.
        output: the .mp4, which appears when it is complete.
        overlay: how to draw.
        save: a file for the whole clip's hands (.glb, .bvh, .json, .npz, see `handmesh.clip_export`), or a folder for
            one file of meshes for each frame with hands, named by the frame's number from 0.
        save_suffix: the format of a folder's files.
        max_frames: stop after so many.
        on_frame: is told how many frames are done.
        keypoints: the order of joints in a clip's .json and .npz.

    Raises:
        ValueError: a suffix is unknown, or the source has no frame.
    """
    if save_suffix not in WRITERS:
        raise ValueError(f"cannot save meshes as {save_suffix!r}: it must be one of {', '.join(WRITERS)}")
    clip = None
    if save is not None and names_file(save):
        check_clip_suffix(save)
        check_writable(save)
        clip = Clip(source.fps)
    elif save is not None and any(save.glob(f"[0-9]*{save_suffix}")):
        _log.warning("%s holds meshes of another run; those of frames that have a hand now are written over", save)
    tracker.reset()
    frames = with_hand = 0
    tracking_s = 0.0
    stopped: KeyboardInterrupt | None = None
    started = time.perf_counter()
    with VideoWriter(output, source.fps) as writer:
        try:
            for frame, time_s in source:
                before = time.perf_counter()
                hands = tracker(frame, time_s)
                tracking_s += time.perf_counter() - before
                canvas = overlay.draw(frame, hands)
                draw_labels(canvas, hands)
                writer.write(canvas, time_s)
                if clip is not None:
                    clip.add(time_s, hands)
                elif save is not None and hands:
                    export_hands(hands, save / f"{frames:06d}{save_suffix}")
                frames += 1
                with_hand += bool(hands)
                if on_frame is not None:
                    on_frame(frames)
                if frames == max_frames:
                    break
        except KeyboardInterrupt as error:
            stopped = error
    saved: list[Path] = []
    if clip is not None and save is not None and with_hand:
        saved = export_clip(clip, save, tracker.hand_model, keypoints=keypoints)
    elif save is not None and with_hand:
        saved = [save]
    if stopped is not None:
        if frames:
            _log.warning("stopped: %s ends after %d frames", ", ".join(map(str, [output, *saved])), frames)
        raise stopped
    return VideoReport(frames, with_hand, tracking_s, time.perf_counter() - started, tuple(saved))
