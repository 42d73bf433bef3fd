"""Every program says a user's mistake in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from handmesh.mistakes import in_one_line

ROOT = Path(__file__).parents[1]


def test_exit_status_and_line(capsys):
    def fail(error: BaseException) -> int:
        raise error

    assert in_one_line(lambda: None) == 0
    assert in_one_line(lambda: 3) == 3
    assert in_one_line(lambda: fail(FileNotFoundError("no file x: check the path"))) == 1
    assert capsys.readouterr().err == "error: no file x: check the path\n"
    assert in_one_line(lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert in_one_line(lambda: fail(ModuleNotFoundError("No module named 'ray'", name="ray"))) == 1
    with pytest.raises(ModuleNotFoundError):
        in_one_line(lambda: fail(ModuleNotFoundError("No module named 'handmesh.x'", name="handmesh.x")))
    with pytest.raises(TypeError):
        in_one_line(lambda: fail(TypeError("our own mistake")))


def test_names_that_a_terminal_cannot_show_end_no_program():
    program = "from handmesh.mistakes import in_one_line as p; print(p(lambda: print('a caf\\udce9', '\\u624b')))"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "a caf\\udce9 \\u624b\n0\n"


def test_a_script_says_which_file_is_missing(tmp_path):
    command = [sys.executable, ROOT / "eval" / "photos.py", tmp_path / "none", "--split", "test"]
    run = subprocess.run([*command, "--out", tmp_path / "x.json"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert str(tmp_path / "none") in run.stderr
    assert run.stderr.count("\n") == 1
