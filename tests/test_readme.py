"""The README does what it says: its commands parse, its Python runs, its links lead somewhere."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import subprocess
from pathlib import Path

import graphs
import numpy as np
import pytest

from handmesh import cli, video
from handmesh.estimator import HandMeshEstimator
from handmesh.video import VideoWriter, write_picture

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "MODEL_CARD.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_commands() -> list[str]:
    """Single commands: those of the code blocks, and those quoted in the text."""
    lines = "\n".join(blocks("bash")).replace(" && ", "\n").splitlines()
    quoted = re.findall(r"`((?:handmesh|python|pip|pytest)[ \w][^`\n]*)`", README)
    return [line for line in [*lines, *quoted] if line]


def test_the_python_runs_and_is_short(tmp_path, monkeypatch, estimator, capsys):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    frame = graphs.draw_hand(np.full((256, 320, 3), 20, np.uint8), (140, 120), 64)
    monkeypatch.chdir(tmp_path)
    write_picture("demos/sample_1.jpg", frame)
    with VideoWriter("clip.mp4", 25.0) as writer:
        for _ in range(3):
            writer.write(frame)
    monkeypatch.setattr(video, "SAMPLE_CLIP", tmp_path / "clip.mp4")
    monkeypatch.setattr(HandMeshEstimator, "from_pretrained", lambda *_, **__: estimator)
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("right ")
    assert said[1:] == [f"{time} [(0, 'right')]" for time in (0.0, 0.04, 0.08)]
    assert (tmp_path / "out" / "hand_0.glb").is_file()


def test_there_are_two_setup_commands_and_continuous_integration_runs_them():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    patterns = re.findall(r"sed -n (?:'([^']+)'|\"([^\"]+)\") README\.md", script)
    assert len(patterns) == 2
    for single, double in patterns:
        found = subprocess.run(
            ["sed", "-n", single or double, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert found.stdout.startswith("pip install ")
        assert len(found.stdout.splitlines()) == 1
    assert script.rstrip().endswith("\npytest")


@pytest.mark.parametrize("command", [c for c in shell_commands() if c.startswith(("handmesh", "python demos"))])
def test_commands_are_understood(command):
    words = shlex.split(command)
    if words[0] == "python":
        script = Path(words[1])
        assert (ROOT / script).is_file()
        words = ["handmesh", script.stem, *words[2:]]
    if any(tuple(words[1 : 1 + len(known)]) == known for known in cli.TRAIN_COMMANDS):
        return  # their own parsers need the train extra
    options = cli._parser().parse_args(words[1:])
    assert callable(options.run)


def documented_commands() -> list[str]:
    """What data/README.md and eval/README.md tell to run: indented lines, and what is quoted in text and tables."""
    found = []
    for name in ("data", "eval"):
        text = (ROOT / name / "README.md").read_text(encoding="utf-8")
        lines = re.findall(r"^    ((?:OMP|torchrun|handmesh|python) .*)$", text, flags=re.MULTILINE)
        lines += re.findall(r"`((?:OMP_NUM_THREADS=1 )?(?:torchrun|handmesh|python) [^`]+)`", text)
        found += [line for line in lines if " --" in line]
    return found


@pytest.mark.parametrize("command", documented_commands())
def test_documented_options_exist(command):
    """Told by their sources, as opening two dozen scripts takes long: a script's own, or its module's."""
    words = shlex.split(command)
    if "torchrun" in words:
        words = ["python", *words[words.index("-m") :]]
    if words[1:3] == ["-m", "handmesh"]:
        words = words[2:]
    if words[0] == "handmesh":
        (module,) = {m for known, (m, _) in cli.TRAIN_COMMANDS.items() if tuple(words[1 : 1 + len(known)]) == known}
    elif words[1] == "-m":
        module = words[2]
    else:
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        forwards = re.search(r"^from (handmesh\.evaluation\.\w+) import main$", script, flags=re.MULTILINE)
        module = forwards[1] if forwards else words[1].removesuffix(".py").replace("/", ".")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--")):
        listed = 'f"--{name}"' in source and f'"{option[2:]}"' in source
        assert f'"{option}"' in source or listed, f"{module} knows no {option}"


@pytest.mark.parametrize("command", [c for c in shell_commands() if c.startswith("pip install")])
def test_extras_exist(command):
    known = set(importlib.metadata.metadata("handmesh").get_all("Provides-Extra") or [])
    for extras in re.findall(r"\[([\w,]+)\]", command):
        assert set(extras.split(",")) <= known


def test_no_requirement_pins_a_version():
    for requirement in importlib.metadata.requires("handmesh") or []:
        assert "==" not in requirement.split(";")[0]
        assert ">=" in requirement


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_named_paths_exist():
    for path in re.findall(r"`((?:handmesh|data|demos|eval)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
