"""Programs that say users' mistakes in one line."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable


def in_one_line(program: Callable[[], int | None]) -> int:
    """The exit status of `program`: its own, 1 after a mistake, 130 after Ctrl-C.

    SIGTERM and a closed terminal end a program as Ctrl-C does, with its files complete. Users' mistakes and missing
    things (OSError, ValueError and packages that could be installed) are one line on standard error; our own mistakes
    keep their traceback.
    """
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


def is_ours(error: ModuleNotFoundError) -> bool:
    """Whether it is a part of handmesh that is missing, and not a package that a user could install."""
    return error.name is not None and error.name.split(".")[0] == "handmesh"
