"""Hands through many videos: some of them side by side, so that their next frames go through the network together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import islice

from handmesh.bulk.parts import Entry, Part, file_state
from handmesh.estimator import HandMeshEstimator, check_camera
from handmesh.records import Camera
from handmesh.tracker import HandTracker, track_together
from handmesh.video import TimedFrame, open_source

READERS = 2
"""Threads that decode."""

NewPart = Callable[[str], AbstractContextManager[Part]]


def follow_in_videos(
    estimator: HandMeshEstimator,
    files: Sequence[str],
    new_part: NewPart,
    *,
    batch: int,
    max_frames: int | None = None,
    max_hands: int = 2,
) -> list[Entry]:
    """Write a part for each video, made by ``new_part(file)``, and say what became of each.

    Up to ``batch`` videos go side by side; each ends after ``max_frames`` if it has more, and ``max_hands`` are
    followed at most.
    """
    entries: list[Entry] = []
    waiting = deque(files)
    playing: list[_Video] = []
    with ExitStack() as cleanup, ThreadPoolExecutor(READERS) as readers:
        while waiting or playing:
            while waiting and len(playing) < batch:
                closing = cleanup.enter_context(ExitStack())
                file = waiting.popleft()
                part, tracker = closing.enter_context(new_part(file)), HandTracker(estimator, max_hands)
                playing.append(_Video(file, part, closing, tracker, estimator.camera, max_frames))
                playing[-1].fetch(readers)
            frames = [video.next_frame(readers) for video in playing]
            _follow([(video, frame) for video, frame in zip(playing, frames, strict=True) if frame is not None])
            entries += [video.end() for video in playing if video.is_over]
            playing = [video for video in playing if not video.is_over]
    return entries


def _follow(frames: Sequence[tuple[_Video, TimedFrame]]) -> None:
    """Find the hands in the next frame of each video."""
    trackers = [video.tracker for video, _ in frames]
    try:
        hands = track_together(trackers, [frame for _, (frame, _) in frames], [time_s for _, (_, time_s) in frames])
    except Exception as error:  # the frames have been checked, so whose fault it is cannot be told
        for video, _ in frames:
            video.stop(error)
        return
    for (video, (_, time_s)), found in zip(frames, hands, strict=True):
        video.part.append(video.file, video.frames, time_s, found)
        video.frames += 1


class _Video:
    """A video while it is played: a thread decodes its next frame while the network runs on the last one."""

    def __init__(
        self,
        file: str,
        part: Part,
        closing: ExitStack,
        tracker: HandTracker,
        camera: Camera | None,
        max_frames: int | None,
    ) -> None:
        self.file, self.part, self.tracker = file, part, tracker
        self.frames = 0
        self.is_over = False
        self._closing, self._max_frames = closing, max_frames
        self._state = file_state(file)
        self._error: Exception | None = None
        self._announced: int | None = None
        self._source = self._play(camera)
        self._coming: Future[TimedFrame | None] | None = None

    def _play(self, camera: Camera | None) -> Iterator[TimedFrame]:
        with open_source(self.file) as source:
            self._announced = source.frame_count
            for frame, time_s in islice(source, self._max_frames):
                check_camera(None, frame, camera)
                yield frame, time_s

    def fetch(self, readers: ThreadPoolExecutor) -> None:
        """Have the next frame decoded."""
        self._coming = readers.submit(next, self._source, None)

    def next_frame(self, readers: ThreadPoolExecutor) -> TimedFrame | None:
        """Wait for the next frame, and have the one after it decoded; None where the video is over."""
        assert self._coming is not None
        try:
            frame = self._coming.result()
        except Exception as error:  # whatever a decoder says: it is told by the file's name, and others go on
            self.stop(error)
            return None
        if frame is None:
            self.is_over = True
        else:
            self.fetch(readers)
        return frame

    def stop(self, error: Exception) -> None:
        """End the video here because of an error."""
        self.is_over, self._error = True, error

    def end(self) -> Entry:
        """Complete the part."""
        wanted = min(n for n in (self._announced or 0, self._max_frames) if n is not None)
        note = None
        if self._error is None and self.frames < wanted:
            note = f"{self.frames} of the {self._announced} frames that it announces could be read"
        entry = self.part.end_file(self.file, self._state, self._error, note)
        self._closing.close()
        return entry
