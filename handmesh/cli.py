"""The command line: ``handmesh image|video|webcam`` for everybody, ``serve`` with the `web` extra, and ``train``,
``export`` and ``data`` with the `train` extra."""

from __future__ import annotations

import argparse
import logging
import mimetypes
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from importlib import import_module
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handmesh.atomic import check_writable, names_file
from handmesh.mistakes import in_one_line, is_ours, stop_asked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from handmesh.bulk.worker import Kind
    from handmesh.estimator import HandMeshEstimator
    from handmesh.records import Camera
    from handmesh.server.engine import Engine
    from handmesh.server.source import ServerSource
    from handmesh.tracker import HandTracker
    from handmesh.video import FrameSource

OUT = Path("out")

#: Commands with a module of their own: words -> (module with a main(argv), what it does). All but `bench` need the
#: `train` extra.
TRAIN_COMMANDS: dict[tuple[str, ...], tuple[str, str]] = {
    ("train",): ("handmesh.training.command", "train a hand network"),
    ("export",): ("handmesh.model.deploy", "fold a trained network and write it as ONNX"),
    ("quantise",): ("handmesh.evaluation.quantisation", "make the int8 twin of exported weights and measure it"),
    ("bench",): ("handmesh.evaluation.latency", "measure latency, memory and cold start on this machine"),
    ("data", "synthesize"): ("handmesh.synthesis.synthesize", "render synthetic training data"),
    ("data", "freihand"): ("handmesh.datasets.freihand_check", "check a copy of FreiHAND"),
    ("data", "label"): ("handmesh.datasets.pseudo_labels", "label the hands of photos, to train on them"),
    ("data", "convert"): ("handmesh.datasets.convert", "fit MANO to hands of the open model, and the other way round"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = list(sys.argv[1:] if argv is None else argv)
    for words, (module, purpose) in TRAIN_COMMANDS.items():
        if tuple(arguments[: len(words)]) == words:
            return _forward(module, purpose, arguments[len(words) :])
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return in_one_line(lambda: run(options))


def image_main(argv: Sequence[str] | None = None, pictures: Sequence[Path] = ()) -> int:
    """``handmesh image``; `pictures` are what it takes where the user names none."""
    parser = argparse.ArgumentParser(description="Draw the hands of pictures.")
    _add_image_options(parser, pictures)
    options = parser.parse_args(argv)
    return in_one_line(lambda: _image(options))


def video_main(argv: Sequence[str] | None = None) -> int:
    """``handmesh video``."""
    parser = argparse.ArgumentParser(description="Draw the hands of a video.")
    _add_video_options(parser)
    options = parser.parse_args(argv)
    return in_one_line(lambda: _video(options))


def webcam_main(argv: Sequence[str] | None = None) -> int:
    """``handmesh webcam``."""
    parser = argparse.ArgumentParser(description="Draw hands live.")
    _add_webcam_options(parser)
    options = parser.parse_args(argv)
    return in_one_line(lambda: _webcam(options))


def _parser() -> argparse.ArgumentParser:
    from handmesh import __version__

    parser = argparse.ArgumentParser(prog="handmesh", description="An RGB frame in, 3D hand meshes out.")
    parser.add_argument("--version", action="version", version=f"handmesh {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_image_options(commands.add_parser("image", help="draw the hands of pictures"), ())
    _add_video_options(commands.add_parser("video", help="draw the hands of a video"))
    _add_webcam_options(commands.add_parser("webcam", help="draw hands live, from a camera or a clip"))
    _add_calibrate_options(
        commands.add_parser(
            "calibrate", help="find a camera's intrinsics with a printed board (writes a --camera file)"
        )
    )
    _add_calibrate_hand_options(
        commands.add_parser("calibrate-hand", help="find a person's hand shape and size (writes a --hand file)")
    )
    _add_serve_options(commands.add_parser("serve", help="a web page and streams of hands (needs the web extra)"))
    groups: dict[tuple[str, ...], Any] = {(): commands}
    for words, (_, purpose) in TRAIN_COMMANDS.items():
        group, name = words[:-1], words[-1]
        if group not in groups:
            parent = commands.add_parser(group[0], help="make and check training data (needs the train extra)")
            groups[group] = parent.add_subparsers(required=True, metavar="WHAT")
        needs = "" if words == ("bench",) else " (needs the train extra)"
        groups[group].add_parser(name, help=purpose + needs, add_help=False)
    return parser


def _add_image_options(parser: argparse.ArgumentParser, pictures: Sequence[Path]) -> None:
    parser.add_argument(
        "pictures",
        nargs="*" if pictures else "+",
        type=Path,
        default=list(pictures),
        metavar="PICTURE",
        help="picture files" + (" (default: the samples)" if pictures else ""),
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE|FOLDER",
        help=f"the drawn picture ({OUT}/NAME_hands and its suffix), or a folder for it, or for those of several",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write the meshes too: .glb .obj .ply .json .npz; with several pictures each one's name goes before",
    )
    _add_job_options(parser)
    _add_common_options(parser)
    parser.set_defaults(run=_image)


def _add_video_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="video files, folders of videos or pictures, patterns, or: sample"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE|FOLDER",
        help=f"the drawn .mp4 ({OUT}/NAME_hands.mp4), or a folder for it, or for those of several videos",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE|FOLDER",
        help="write the hands too: the whole clip into a .glb (animated), .bvh, .json or .npz; "
        "or one file of meshes a frame into a folder",
    )
    parser.add_argument(
        "--format",
        choices=["npz", "json", "glb", "obj", "ply"],
        help="of a folder's meshes (npz)",
    )
    parser.add_argument(
        "--keypoints",
        choices=["freihand", "mediapipe", "openxr"],
        help="order of the joints in a clip's .json and .npz (freihand)",
    )
    _add_video_limits(parser)
    _add_job_options(parser)
    _add_common_options(parser)
    parser.set_defaults(run=_video)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    many = parser.add_argument_group("many files", "Draw nothing and write numbers, by several workers at once.")
    many.add_argument(
        "--results", type=Path, metavar="FOLDER", help="for the hands of all files and an index; goes on where it was"
    )
    many.add_argument("--parquet", action="store_true", help="as Parquet (scale extra) instead of .npz")
    many.add_argument("--vertices", action="store_true", help="with the meshes' vertices, 20 kB a hand instead of 1")
    many.add_argument("--workers", type=_positive, metavar="N", help="processes, or actors on Ray (one a processor)")
    many.add_argument("--batch", type=_positive, metavar="N", help="frames in a run (8)")
    many.add_argument("--engine", choices=["local", "ray"], help="this machine or a Ray cluster (local)")
    many.add_argument("--ray-address", metavar="ADDRESS", help="of the cluster (RAY_ADDRESS, or one that is started)")


def _add_webcam_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        metavar="FILE|FOLDER|INDEX|URL|sample",
        help="what to play, a camera's rtsp:// address too (the first camera; without one, the sample clip)",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="record what is shown to an .mp4")
    parser.add_argument("--no-window", action="store_true", help="show nothing")
    _add_video_limits(parser)
    _add_common_options(parser)
    parser.set_defaults(run=_webcam)


def _add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve a page that shows hands, pictures over HTTP, and streams over WebSocket and OSC."
    parser.add_argument("--host", default="127.0.0.1", help="to bind; others than loopback need a token (%(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="0 takes any that is free (%(default)s)")
    parser.add_argument(
        "--token",
        default=os.environ.get("HANDMESH_TOKEN"),
        help="that clients must know, of 16 or more letters and digits (the variable HANDMESH_TOKEN)",
    )
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="let this site's pages use the server too"
    )
    parser.add_argument("--source", metavar="FILE|FOLDER|INDEX|URL|sample", help="serve this camera's or clip's hands")
    parser.add_argument("--osc", metavar="HOST:PORT", help="send the source's hands there by OSC")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="for HTTPS, with --key")
    parser.add_argument("--key", type=Path, metavar="PEM", help="for HTTPS, with --certificate")
    _add_max_hands(parser)
    _add_common_options(parser)
    parser.set_defaults(run=_serve)


def _add_calibrate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="FILE|FOLDER|INDEX|URL", help="a video, pictures or a camera")
    parser.add_argument("--out", type=Path, default=Path("camera.yaml"), metavar="FILE", help="(%(default)s)")
    parser.add_argument(
        "--board",
        default="9x6",
        metavar="COLUMNSxROWS",
        help="inner corners of a checkerboard, or squares of a ChArUco board (%(default)s)",
    )
    parser.add_argument("--square-mm", type=float, required=True, metavar="MM", help="side of a square, as printed")
    parser.add_argument("--marker-mm", type=float, metavar="MM", help="side of a marker: the board is a ChArUco board")
    parser.add_argument("--dictionary", metavar="NAME", help="of ChArUco markers (DICT_5X5_100)")
    parser.add_argument("--views", type=_positive, default=20, metavar="N", help="stop after N views (%(default)s)")
    parser.add_argument("--draw", type=Path, metavar="PICTURE", help="write the board as a picture to print instead")
    parser.set_defaults(run=_calibrate)


def _add_calibrate_hand_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="FILE|INDEX|URL",
        help="a camera or a video in which the hand is held flat and still",
    )
    parser.add_argument("--out", type=Path, default=Path("hand.json"), metavar="FILE", help="(%(default)s)")
    parser.add_argument(
        "--length-mm",
        type=float,
        metavar="MM",
        help="measured: crease of the wrist to the tip of the middle finger; without a source, it sets the size alone, "
        "of the shape of --hand",
    )
    _add_common_options(parser)
    parser.set_defaults(run=_calibrate_hand)


def _add_video_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-frames", type=_positive, metavar="N", help="stop after N frames")
    _add_max_hands(parser)


def _add_max_hands(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-hands", type=_positive, default=2, metavar="N", help="to follow at most (%(default)s)")


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="fast", metavar="NAME|FILE", help="hand network (%(default)s)")
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino", "torch"], default="onnxruntime")
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], help="to compute in (the fastest that is good)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, coreml, directml, ... (%(default)s)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="processor threads (all, at most 4)")
    parser.add_argument(
        "--hand", type=Path, metavar="FILE", help="a person's own hand by `handmesh calibrate-hand`: its shape and size"
    )
    parser.add_argument(
        "--refine", action="store_true", help="bend each hand until its joints meet its keypoints (slower)"
    )
    parser.add_argument(
        "--camera",
        metavar="FILE|FX,FY,CX,CY,W,H",
        help="intrinsics, as a file by OpenCV, ROS or COLMAP (assumed: a field of view of 60 degrees)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _forward(module: str, purpose: str, arguments: Sequence[str]) -> int:
    def run() -> int:
        try:
            return import_module(module).main(list(arguments)) or 0
        except ModuleNotFoundError as error:
            if not str(error).startswith("No module named") or is_ours(error):
                raise
            raise ModuleNotFoundError(
                f"to {purpose}, install the train extra: pip install 'handmesh[train]' ({error.name} is missing)"
            ) from error

    return in_one_line(run)


def _estimator(options: argparse.Namespace) -> HandMeshEstimator:
    from handmesh.estimator import HandMeshEstimator

    camera = _camera(options)
    estimator = HandMeshEstimator.from_pretrained(
        options.weights,
        runtime=options.runtime,
        threads=options.threads,
        precision=options.precision,
        device=options.device,
    )
    estimator.camera = camera
    if options.hand is not None:
        from handmesh.hand_size import HandShape

        estimator.betas = HandShape.load(options.hand).betas
    if options.refine:
        from handmesh.refine import Refinement

        estimator.refinement = Refinement()
    return estimator


def _camera(options: argparse.Namespace) -> Camera | None:
    from handmesh.intrinsics import parse_camera

    return None if options.camera is None else parse_camera(options.camera)


def _tracker(options: argparse.Namespace) -> HandTracker:
    from handmesh.tracker import HandTracker

    estimator = _estimator(options)
    tracker = HandTracker(estimator, options.max_hands)
    # The tracker gives hands the shape of --hand: the key that measures a hand takes it back there.
    tracker.betas, estimator.betas = estimator.betas, None
    return tracker


def _image(options: argparse.Namespace) -> int:
    from handmesh.annotate import annotate_picture
    from handmesh.bulk.inputs import find_pictures
    from handmesh.export import WRITERS
    from handmesh.render import Overlay
    from handmesh.video import IMAGE_SUFFIXES

    pictures = find_pictures(options.pictures)
    if options.results is not None:
        return _job(options, "image", pictures)
    _check_no_job_is_meant(options)
    if options.save is not None and options.save.suffix.lower() not in WRITERS:
        raise ValueError(f"--save must name a file that ends in {', '.join(WRITERS)}, not {options.save}")
    out, several = options.out or OUT, len(pictures) > 1
    is_file = out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir()
    if not is_file and not out.is_dir() and mimetypes.guess_type(out.name)[0] is not None:
        raise ValueError(f"--out must be a folder, or a file that ends in {', '.join(IMAGE_SUFFIXES)}, not {out}")
    if is_file and several:
        raise ValueError(f"--out must be a folder for {len(pictures)} pictures, not {out}")
    estimator = _estimator(options)
    inputs = _identities(pictures)
    failed = 0
    for picture, stem in zip(pictures, _stems(pictures), strict=True):
        suffix = picture.suffix if picture.suffix.lower() in IMAGE_SUFFIXES else ".png"
        output = out if is_file else out / f"{stem}_hands{suffix}"
        save = options.save
        if save is not None and several:
            save = save.with_name(f"{stem}_{save.name}")
        try:
            _check_stays(output, inputs)
            hands = annotate_picture(estimator, picture, output, Overlay(skeleton=True), save)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        found = ", ".join(f"{hand.side} hand {hand.score:.2f}" for hand in hands) or "no hand"
        print(f"{picture}: {found} -> {output}" + (f", {save}" if save is not None and hands else ""))
    return 1 if failed else 0


def _video(options: argparse.Namespace) -> int:
    from handmesh.bulk.inputs import find_videos

    videos = find_videos(options.videos)
    if options.results is not None:
        return _job(options, "video", videos)
    _check_no_job_is_meant(options)
    _check_what_is_saved(options)
    output = options.out or OUT
    is_file = names_file(output)
    if is_file and output.suffix.lower() == ".mp4" and len(videos) > 1:
        raise ValueError(f"--out must be a folder for {len(videos)} videos, not {output}")
    tracker = _tracker(options)
    inputs = _identities(videos)
    if len(videos) == 1:
        drawn = output if is_file else output / f"{_stems(videos)[0]}_hands.mp4"
        _check_stays(drawn, inputs)
        return _draw_video(tracker, videos[0], drawn, options.save, options)
    failed = 0
    for video, stem in zip(videos, _stems(videos), strict=True):
        save = options.save
        if save is not None:
            save = save.with_name(f"{stem}_{save.name}") if names_file(save) else save / stem
        try:
            drawn = output / f"{stem}_hands.mp4"
            _check_stays(drawn, inputs)
            _draw_video(tracker, video, drawn, save, options)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def _stems(paths: Sequence[Path]) -> list[str]:
    """Names for what is written about files: their own without suffix, numbered where several have the same."""
    stems: dict[str, None] = {}
    for path in paths:
        stem = path.stem or path.resolve().stem  # of the folder .
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        stems[next(name for name in names if name not in stems)] = None
    return list(stems)


def _identities(paths: Sequence[Path]) -> set[tuple[int, int]]:
    """Which files these are, under whatever names."""
    states = [path.stat() for path in paths if path.exists()]
    return {(state.st_dev, state.st_ino) for state in states}


def _check_stays(output: Path, inputs: set[tuple[int, int]], option: str = "--out") -> None:
    """Raise ValueError where what is written would take the place of one of the inputs, by their `_identities`."""
    if not inputs.isdisjoint(_identities([output])):
        raise ValueError(f"{output} is a file to read: name another one by {option}")


def _draw_video(tracker: HandTracker, video: Path, output: Path, save: Path | None, options: argparse.Namespace) -> int:
    from handmesh.annotate import annotate_video
    from handmesh.render import Overlay
    from handmesh.video import open_source

    with open_source(video) as source:
        report = annotate_video(
            tracker,
            source,
            output,
            Overlay(),
            save,
            f".{options.format or 'npz'}",
            options.max_frames,
            _progress(source) if sys.stderr.isatty() else None,
            options.keypoints or "freihand",
        )
    if sys.stderr.isatty():
        print(file=sys.stderr)  # ends the line of progress
    print(
        f"{report.frames} frames, a mesh in {report.frames_with_hand} of them; {report.fps:.1f} frames a second with "
        f"reading, drawing and writing, of which hands took {report.tracking_ms:.1f} ms a frame"
    )
    print("wrote " + ", ".join(str(path) for path in (output, *report.saved)))
    if save is not None and not report.saved:
        print(f"no hand was found, so nothing is written to {save}")
    return 0


def _check_no_job_is_meant(options: argparse.Namespace) -> None:
    """ValueError for options that only `_job` follows."""
    given = _given(options, "parquet", "vertices", "workers", "batch", "engine", "ray_address")
    if given:
        raise ValueError(f"{given}: only for --results; give it, or leave them out")


def _given(options: argparse.Namespace, *names: str) -> str:
    """Which of these options a user has given, as they are typed; a command need not have them all."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(options, name, None))


def _check_what_is_saved(options: argparse.Namespace) -> None:
    """ValueError for options of files that a video's ``--save`` does not name."""
    save: Path | None = options.save
    suffix = None if save is None else "" if save.is_dir() else save.suffix.lower()
    if options.format is not None and suffix != "":
        raise ValueError("--format is of the meshes in a folder: name a folder by --save, or leave it out")
    if options.keypoints is not None and suffix not in (".json", ".npz"):
        raise ValueError("--keypoints orders the joints of a clip: name a .json or .npz by --save, or leave it out")


def _job(options: argparse.Namespace, kind: Kind, files: Sequence[Path]) -> int:
    """Many files by several workers: numbers and an index instead of drawings."""
    from handmesh.bulk.job import INDEX, run_job
    from handmesh.bulk.worker import Task

    drawing = _given(options, "out", "save", "format", "keypoints")
    if drawing:
        raise ValueError(f"with --results nothing is drawn and no mesh file written: leave out {drawing}")
    if options.hand is not None or options.refine:
        raise ValueError("--results takes hands as the network sees them: leave out --hand and --refine")
    if options.ray_address is not None and options.engine != "ray":
        raise ValueError("--ray-address is that of a Ray cluster: give --engine ray, too")
    task = Task(
        kind,
        weights=options.weights,
        runtime=options.runtime,
        precision=options.precision,
        device=options.device,
        camera=_camera(options),
        table="parquet" if options.parquet else "npz",
        vertices=options.vertices,
        batch=options.batch or 8,
        **({"max_frames": options.max_frames, "max_hands": options.max_hands} if kind == "video" else {}),
    )
    try:
        report = run_job(
            files,
            task,
            options.results,
            engine=options.engine or "local",
            workers=options.workers,
            threads=options.threads,
            address=options.ray_address,
            on_progress=_job_progress if sys.stderr.isatty() else None,
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for entry in [*report.failed, *report.noted]:
        said = str(entry.error or entry.note)
        name = "" if entry.path in said else f"{entry.path}: "
        print(f"{'error' if entry.error else 'warning'}: {name}{said}", file=sys.stderr)
    earlier = f", {report.found_done} of them earlier" if report.found_done else ""
    print(
        f"{report.files - len(report.failed)} of {report.files} files read{earlier}; now {report.frames} frames in "
        f"{report.elapsed_s:.1f} s, {report.frames / report.elapsed_s:.1f} a second, {report.hands} hands in "
        f"{report.frames_with_hand} of them"
    )
    print(f"wrote {options.results}, listed in {options.results / INDEX}")
    return 1 if report.failed else 0


def _job_progress(done: int, files: int) -> None:
    print(f"\r{done}/{files} files", end="\n" if done == files else "", file=sys.stderr)


def _progress(source: FrameSource) -> Callable[[int], None]:
    of = f"/{source.frame_count}" if source.frame_count else ""

    def show(done: int) -> None:
        if done % 10 == 0 or done == source.frame_count:
            print(f"\r{source.name}: {done}{of} frames", end="", flush=True, file=sys.stderr)

    return show


def _webcam(options: argparse.Namespace) -> int:
    from handmesh.live import KEYS_HELP, LiveSession, Window, display_problem, free_name
    from handmesh.video import open_source

    if options.source and options.record:
        _check_stays(options.record, _identities([Path(options.source)]), "--record")
    tracker = _tracker(options)
    source = _open_live_source(options.source)
    with source:
        window, record = None, options.record
        problem = None if options.no_window else display_problem()
        if problem is not None:
            record = record or free_name(OUT / "webcam.mp4")
            print(f"{problem}: recording to {record} instead of showing a window")
        elif not options.no_window:
            window = Window()
            print(KEYS_HELP)
        session = LiveSession(
            tracker,
            OUT,
            window=window,
            record=record,
            mirror=source.live,
            max_frames=options.max_frames,
            say=print,
        )
        report = session.play(source)
    is_sample = options.source in (None, "sample") and not source.live
    while is_sample and session.window is not None and not report.stopped:
        with open_source("sample") as again:
            report = session.play(again)
    if session.window is not None:
        session.window.close()
    stages = ", ".join(f"{name} {ms:.1f} ms" for name, ms in report.stages_ms.items())
    print(
        f"{report.frames} frames, a mesh in {report.frames_with_hand} of them; "
        f"{report.fps:.1f} frames a second; {stages}"
    )
    return 0


def _serve(options: argparse.Namespace) -> int:
    try:
        from handmesh.server.access import Access
        from handmesh.server.app import create_app
        from handmesh.server.engine import Engine
        from handmesh.server.serve import Certificate, bind, page_url, run
    except ModuleNotFoundError as error:
        if is_ours(error):
            raise
        raise ModuleNotFoundError(
            f"to serve, install the web extra: pip install 'handmesh[web]' ({error.name} is missing)"
        ) from error
    if (options.certificate is None) != (options.key is None):
        raise ValueError("HTTPS needs both --certificate and --key")
    certificate = Certificate(options.certificate, options.key) if options.key else None
    access = Access(options.host, options.token, options.allow_origin)
    with bind(options.host, options.port) as listening:
        engine = Engine(_estimator(options), options.max_hands)
        with ExitStack() as ends:  # also where serving never begins
            ends.callback(engine.close)
            source = _server_source(options, engine)
            if source is not None:
                ends.callback(source.close)
            app = create_app(engine, access=access, source=source)
            url = page_url(listening, access, https=certificate is not None)
            run(
                app,
                listening,
                certificate=certificate,
                started=lambda: print(f"serving at {url} (Ctrl-C stops)", flush=True),
            )
    print("stopped")
    return 0


def _server_source(options: argparse.Namespace, engine: Engine) -> ServerSource | None:
    from handmesh.server.osc import OscSender, parse_address
    from handmesh.server.source import ServerSource
    from handmesh.video import open_source

    if options.source is None:
        if options.osc is not None:
            raise ValueError("--osc sends the hands of the server's own source: name it by --source")
        return None
    with open_source(options.source) as source:  # a wrong name is told now
        name = source.name
    osc = None if options.osc is None else OscSender(*parse_address(options.osc))
    return ServerSource(engine, name, lambda: open_source(options.source), osc=osc)


def _calibrate(options: argparse.Namespace) -> int:
    from handmesh.calibrate import DICTIONARY, Board, calibrate
    from handmesh.intrinsics import check_camera_suffix, save_camera
    from handmesh.video import open_source, write_picture

    columns, _, rows = options.board.lower().partition("x")
    if not (columns.isdecimal() and rows.isdecimal()):
        raise ValueError(f"--board must be COLUMNSxROWS such as 9x6, not {options.board!r}")
    marker_m = 1e-3 * (options.marker_mm or 0.0)
    kind = "checkerboard" if options.marker_mm is None else "charuco"
    if options.dictionary is not None and kind == "checkerboard":
        raise ValueError("--dictionary is of ChArUco boards: give their --marker-mm, too")
    square_m, dictionary = 1e-3 * options.square_mm, options.dictionary or DICTIONARY
    board = Board(kind, int(columns), int(rows), square_m, marker_m, dictionary)
    if options.draw is not None:
        write_picture(options.draw, board.draw())
        print(f"wrote {options.draw}: print it, glue it to something flat and measure a square")
        return 0
    if options.source is None:
        raise ValueError("name a camera, a video or a folder of pictures that show the board (or --draw one to print)")
    check_camera_suffix(options.out)
    check_writable(options.out)
    with open_source(options.source) as source, closing(_frames_until_ctrl_c(source)) as frames:
        if source.live:
            print("show the board tilted, near and far, and in the picture's corners (Ctrl-C: enough)")
        found = calibrate(
            frames,
            board,
            views=options.views,
            on_view=(lambda count: print(f"view {count} of {options.views}")) if source.live else None,
        )
    facts: dict[str, float | str] = {"rms_px": found.rms_px, "views": float(found.views), "board": options.board}
    save_camera(options.out, found.camera, facts)
    camera = found.camera
    print(
        f"{found.views} views, error {found.rms_px:.2f} px: focal lengths {camera.fx:.1f} and {camera.fy:.1f} px, "
        f"centre {camera.cx:.1f}, {camera.cy:.1f} px of {camera.width} x {camera.height}"
    )
    for warning in found.warnings:
        print(f"warning: {warning}")
    print(f"wrote {options.out}; use it with --camera {options.out}")
    return 0


def _frames_until_ctrl_c(source: FrameSource) -> Generator[NDArray[np.uint8], None, None]:
    """A source's frames; of a camera to the first Ctrl-C, as it has no end of its own. A second one stops all."""
    with stop_asked(*([signal.SIGINT] if source.live else [])) as stopped:
        for frame, _ in source:
            yield frame
            if stopped():
                return


def _calibrate_hand(options: argparse.Namespace) -> int:
    import numpy as np

    from handmesh.assets import load_hand_model
    from handmesh.hand_size import HOLD_S, FlatHand, HandShape, check_shape_suffix, shape_of_length
    from handmesh.tracker import HandTracker
    from handmesh.video import open_source

    length_m = None if options.length_mm is None else 1e-3 * options.length_mm
    check_shape_suffix(options.out)
    check_writable(options.out)
    if options.source is None:
        if length_m is None:
            raise ValueError("name a camera or a video that shows the hand, or give its --length-mm, or both")
        start = np.zeros(10) if options.hand is None else HandShape.load(options.hand).betas
        shape = HandShape(shape_of_length(load_hand_model(), start, length_m), length_m, measured=True)
    else:
        if options.hand is not None:
            raise ValueError("a hand that is shown finds its own shape: leave out --hand, or the source")
        estimator = _estimator(options)
        tracker = HandTracker(estimator, max_hands=1, smoothing=None)  # shapes of these frames, not of all before
        model = load_hand_model() if estimator.hand_model is None else estimator.hand_model
        flat = FlatHand(model)
        with open_source(options.source) as source:
            print(f"hold one hand flat and still, palm or back to the camera, for {HOLD_S:g} seconds")
            for frame, time_s in source:
                hands = tracker(frame, time_s)
                held = flat.watch(hands[0] if hands else None, time_s)
                if source.live and sys.stderr.isatty():
                    state = f"held for {100 * held:.0f} %" if hands else "no hand in sight"
                    print(f"\r{state:<20}", end="\n" if held >= 1.0 else "", flush=True, file=sys.stderr)
                if held >= 1.0:
                    break
        shape = flat.shape(length_m)
    shape.save(options.out)
    known = "as measured" if shape.measured else "as the network guesses: --length-mm makes it metric"
    print(f"a hand of {1e3 * shape.length_m:.0f} mm ({known})")
    print(f"wrote {options.out}; use it with --hand {options.out}")
    return 0


def _open_live_source(spec: str | None) -> FrameSource:
    from handmesh.video import CameraLostError, open_source

    if spec is not None:
        return open_source(spec)
    try:
        return open_source(0)
    except CameraLostError as error:
        print(f"{error}: playing the sample clip instead (--source plays another file or camera)")
        return open_source("sample")
