"""Programs that say users' mistakes in one line, and that end well when they are asked to."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def in_one_line(program: Callable[[], int | None]) -> int:
    """The exit status of `program`: its own, 1 after a mistake, 130 after Ctrl-C.

    SIGTERM and a closed terminal end a program as Ctrl-C does, with its files complete. Users' mistakes and missing
    things (OSError, ValueError and packages that could be installed) are one line on standard error; our own mistakes
    keep their traceback. Names that a terminal cannot show are printed with escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has only the first
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores it
                signal.signal(number, signal.default_int_handler)
    try:
        return program() or 0
    except (OSError, ValueError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


@contextmanager
def stop_asked(*signals: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Whether one of the signals has come since: what is begun can be ended. A second one raises KeyboardInterrupt.

    Signals come to the main thread alone: in others nobody asks.
    """
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in signals if main}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_ours(error: ModuleNotFoundError) -> bool:
    """Whether it is a part of handmesh that is missing, and not a package that a user could install."""
    return error.name is not None and error.name.split(".")[0] == "handmesh"
