"""FreiHAND's layout as it is published, with the published counts and with what can be wrong with a copy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from mano_imitation import write_mano_pickle
from samples import posed_hand

from handmesh.assets import load_hand_model
from handmesh.cli import main as handmesh
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.freihand_check import Findings, check_freihand
from handmesh.datasets.freihand_files import ANNOTATIONS, COPIES, FreiHandSplit, read_image, read_table

V2_K = [[388.9, 0.0, 112.0], [0.0, 388.7, 112.0], [0.0, 0.0, 1.0]]
JOINTS = posed_hand(0).joints
assert JOINTS is not None
XYZ = np.round(JOINTS - JOINTS.mean(0) + [0.0, 0.0, 0.6], 4)
ROWS = {
    "K": V2_K,
    "xyz": XYZ.tolist(),
    "mano": [[0.0] * 60 + [600.0]],
    "scale": float(np.linalg.norm(XYZ[10] - XYZ[9])),
    "verts": [[0.0, 0.0, 0.6]] * 778,
}


def write_table(root: Path, split: str, name: str, count: int) -> None:
    row = json.dumps(ROWS[name])
    (root / f"{split}_{name}.json").write_text(f"[{','.join([row] * count)}]")


def write_images(folder: Path, count: int) -> None:
    """`count` names of one small file: a file system may allow only some ten thousand names of one."""
    folder.mkdir(parents=True)
    picture = cv2.imencode(".jpg", np.full((224, 224, 3), 90, np.uint8))[1].tobytes()
    for number in range(count):
        path = folder / f"{number:08d}.jpg"
        if number % 10_000 == 0:
            path.write_bytes(picture)
            source = path
        else:
            os.link(source, path)


def write_archive(root: Path, counts: dict[str, int], *, evaluation_labels: bool = True) -> None:
    """A tree like that of the published version 2, of so many annotations a split."""
    write_images(root / "training" / "rgb", counts["training"] * 4)
    write_images(root / "training" / "mask", counts["training"])
    write_images(root / "evaluation" / "rgb", counts["evaluation"])
    for name in ("K", "xyz", "mano", "scale"):
        write_table(root, "training", name, counts["training"])
    write_table(root, "training", "verts", 1)  # 1.9 GB in the archive; nothing reads it unless asked to
    for name in ("K", "scale", *(("xyz", "mano") if evaluation_labels else ())):
        write_table(root, "evaluation", name, counts["evaluation"])
    if evaluation_labels:
        write_table(root, "evaluation", "verts", 1)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A whole archive, had FreiHAND 6 + 3 frames."""
    for split, count in (("training", 6), ("evaluation", 3)):
        monkeypatch.setitem(ANNOTATIONS, split, count)
    write_archive(tmp_path, dict(ANNOTATIONS))
    return tmp_path


@pytest.fixture
def emptied(tmp_path: Path) -> Iterator[Path]:
    """A folder whose many files are not left for pytest to keep."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_the_published_counts_are_whole_and_load(emptied: Path) -> None:
    assert {split: ANNOTATIONS[split] * COPIES[split] for split in ANNOTATIONS} == {
        "training": 130_240,
        "evaluation": 3_960,
    }
    write_archive(emptied, dict(ANNOTATIONS))
    findings = check_freihand(emptied)
    assert findings.problems == []
    for fact in (
        "training: 130240 images in rgb",
        "training: 32560 images in mask",
        "training: 32560 annotations with K, xyz, mano, scale",
        "evaluation: 3960 images in rgb",
        "training: version 2 (images warped so that the camera looks at their middle)",
        "training: scale is the middle finger's proximal phalanx to 0.00 mm (median)",
    ):
        assert fact in findings.facts
    training, evaluation = FreiHandDataset(emptied), FreiHandDataset(emptied, "evaluation")
    assert (len(training), training.copies, len(evaluation)) == (130_240, 4, 3_960)
    assert training.rotations is None
    for number in (0, 32_559, 32_560, 130_239):  # masks are there for the first copy alone and hold for all
        sample = training[number]
        assert sample.mask is not None
        assert sample.rotations is None
        assert sample.joints is not None
        np.testing.assert_allclose(sample.joints, XYZ - XYZ[0])
    assert evaluation[3_959].mask is None


def test_the_training_archive_alone_is_whole_but_cannot_be_scored(few: Path) -> None:
    for name in ("xyz", "verts", "mano"):
        (few / f"evaluation_{name}.json").unlink()
    findings = check_freihand(few)
    assert findings.problems == []
    assert any("scoring needs the archive FreiHAND_pub_v2_eval" in fact for fact in findings.facts)
    files = FreiHandSplit.open(few, "evaluation")
    assert files.joints is None
    assert files.scale is not None
    with pytest.raises(FileNotFoundError, match=r"evaluation_xyz\.json: .*FreiHAND_pub_v2_eval"):
        FreiHandDataset(few, "evaluation")


def swap(path: Path, change: Callable[[list], object]) -> None:
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(change(rows)))


def set_nan(rows: list) -> list:
    rows[2][4][1] = float("nan")
    return rows


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (lambda root: (root / "training_mano.json").unlink(), "training: training_mano.json is missing"),
    "no images": (lambda root: (root / "training" / "mask").rename(root / "m"), "folder training/mask is missing"),
    "no split": (
        lambda root: ((root / "evaluation").rename(root / "e"), (root / "evaluation_K.json").unlink()),
        "evaluation: neither evaluation/rgb nor evaluation_K.json is there",
    ),
    "a lost image": (
        lambda root: (root / "training" / "rgb" / "00000017.jpg").unlink(),
        "training/rgb: 1 of 24 images are missing, the first is 00000017.jpg",
    ),
    "one more": (
        lambda root: (root / "evaluation" / "rgb" / "00000003.jpg").write_bytes(b"x"),
        "evaluation/rgb: 1 images more than the published 3, the first is 00000003.jpg",
    ),
    "an empty image": (
        lambda root: ((root / "evaluation/rgb/00000001.jpg").unlink(), (root / "evaluation/rgb/00000001.jpg").touch()),
        "evaluation/rgb/00000001.jpg is empty",
    ),
    "half a table": (
        lambda root: (root / "training_xyz.json").write_text((root / "training_xyz.json").read_text()[:900]),
        "training_xyz.json is not a whole JSON file",
    ),
    "an empty table": (lambda root: (root / "training_K.json").write_text(""), "training: training_K.json is empty"),
    "rows lost": (
        lambda root: swap(root / "training_scale.json", lambda rows: rows[:4]),
        "training: training_scale.json holds 4 annotations instead of 6",
    ),
    "NaN": (lambda root: swap(root / "training_xyz.json", set_nan), "annotations [2] are not finite"),
    "a bad shape": (
        lambda root: swap(root / "training_mano.json", lambda rows: [row[0] for row in rows]),
        "training_mano.json, frame 0: must hold numbers of shape (1, 61), got (61,)",
    ),
    "version 1": (
        lambda root: swap(root / "training_K.json", lambda rows: [[[4e2, 0, 97.3], *rows[0][1:]], *rows[1:]]),
        "training: this is version 1",
    ),
    "behind": (
        lambda root: swap(root / "evaluation_xyz.json", lambda rows: [*rows[:2], (-XYZ).tolist()]),
        "evaluation: hands [2] lie behind the camera",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(few: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(few)
    assert [problem for problem in check_freihand(few).problems if message in problem]


def test_thorough_opens_every_image(few: Path) -> None:
    broken = few / "training" / "rgb" / "00000009.jpg"
    broken.unlink()
    broken.write_bytes(b"no picture")
    small = few / "evaluation" / "rgb" / "00000002.jpg"
    small.unlink()
    cv2.imwrite(str(small), np.zeros((100, 120, 3), np.uint8))
    assert check_freihand(few).problems == []
    write_table(few, "training", "verts", 6)
    write_table(few, "evaluation", "verts", 3)
    seen: list[int] = []

    def watch(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            seen.append(number)
            yield number

    findings = check_freihand(few, thorough=True, watch=watch)
    assert findings.problems == [
        "training/rgb/00000009.jpg cannot be decoded",
        "evaluation/rgb/00000002.jpg has 120 x 100 pixels instead of 224 x 224",
    ]
    assert len(seen) == 24 + 6 + 3


def test_pictures_that_are_cut_off_are_named(few: Path) -> None:
    for name, table in (("training", 6), ("evaluation", 3)):
        write_table(few, name, "verts", table)
    picture = few / "training" / "rgb" / "00000009.jpg"
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8))[1].tobytes()
    for content in (whole[: len(whole) // 2], whole[: len(whole) // 2].ljust(len(whole), b"\0")):
        picture.unlink()
        picture.write_bytes(content)
        assert check_freihand(few, thorough=True).problems == ["training/rgb/00000009.jpg is cut off"]
        with pytest.raises(ValueError, match=r"00000009\.jpg is cut off"):
            read_image(picture, cv2.IMREAD_COLOR)
    picture.write_bytes(whole)
    assert read_image(picture, cv2.IMREAD_COLOR).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("change", "message"), [(lambda xyz: xyz * [1, -1, -1], "behind the camera"), (lambda xyz: xyz * 1e3, "metres")]
)
def test_labels_in_other_axes_and_units_are_refused(few: Path, change, message: str) -> None:
    swap(few / "training_xyz.json", lambda rows: change(np.array(rows)).tolist())
    with pytest.raises(ValueError, match=message):
        FreiHandDataset(few)


def test_a_hand_model_without_parameters_is_said(few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (few / "training_mano.json").unlink()
    FreiHandDataset(few, mano=load_hand_model(write_mano_pickle(tmp_path / "MANO_RIGHT.pkl")))
    assert "keypoints alone are learnt" in caplog.text


def test_half_unpacked_copies_are_not_loaded(few: Path) -> None:
    (few / "training" / "rgb" / "00000020.jpg").unlink()
    with pytest.raises(ValueError, match=r"23 images for 6 annotations: 1 are missing, such as 00000020\.jpg"):
        FreiHandDataset(few)
    swap(few / "evaluation_xyz.json", lambda rows: rows[:2])
    with pytest.raises(ValueError, match=r"different lengths: \{'K': 3, 'xyz': 2"):
        FreiHandDataset(few, "evaluation")
    swap(few / "evaluation_xyz.json", lambda rows: [*rows, [[0.0] * 3] * 20])
    with pytest.raises(ValueError, match=r"frame 2: must hold numbers of shape \(21, 3\), got \(20, 3\)"):
        FreiHandDataset(few, "evaluation")
    (few / "evaluation_xyz.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a list with an entry a frame"):
        read_table(few, "evaluation", "xyz")


def test_the_command_reports_and_answers_by_its_status(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "freihand", "--root", str(few)]
    assert handmesh(command) == 0
    assert capsys.readouterr().out.endswith("this copy is whole\n")
    (few / "training_K.json").unlink()
    assert handmesh(command) == 1
    output = capsys.readouterr().out
    assert "PROBLEM training: training_K.json is missing" in output
    assert output.endswith("1 problems\n")
    (few / "FreiHAND_pub_v2").mkdir()
    assert handmesh([*command[:-1], str(few / "training")]) == 1
    assert "neither training nor evaluation" in capsys.readouterr().err


def test_a_folder_above_the_archive_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "FreiHAND_pub_v2").mkdir()
    with pytest.raises(FileNotFoundError, match=r"give .*FreiHAND_pub_v2"):
        check_freihand(tmp_path)


# ------------------------------------------------------------------------------------------------------- with MANO


def annotate(root: Path, mano_file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Annotations as FreiHAND writes them for a MANO model: pose less the mean pose; returns rotations and betas."""
    import torch

    from handmesh.model.hand_model import HandModel
    from handmesh.model.rotations import rotvec_to_rotmat

    mano = load_hand_model(mano_file)
    rng = np.random.default_rng(0)
    pose, betas = rng.normal(0, 0.4, (count, 16, 3)), rng.normal(size=(count, 10))
    rotations = rotvec_to_rotmat(torch.from_numpy(pose))
    keypoints = HandModel(mano, torch.float64)(rotations, torch.from_numpy(betas)).keypoints.numpy()
    rows = np.concatenate([pose.reshape(count, 48), betas, np.zeros((count, 3))], 1)
    rows[:, 3:48] -= mano.hands_mean
    (root / "training_mano.json").write_text(json.dumps(rows[:, None].tolist()))
    (root / "training_xyz.json").write_text(json.dumps((keypoints + np.array([0.0, 0.0, 0.6])).tolist()))
    return rotations.numpy(), betas


def test_mano_gives_the_published_poses_their_meaning(few: Path, tmp_path: Path) -> None:
    mano_file = write_mano_pickle(tmp_path / "MANO_RIGHT.pkl")
    rotations, betas = annotate(few, mano_file, 6)
    mano = load_hand_model(mano_file)
    assert np.abs(mano.hands_mean).max() > 0.5
    with pytest.raises(ValueError, match="holds parameters of MANO, but the hand model given has 16"):
        FreiHandDataset(few, mano=load_hand_model())
    dataset = FreiHandDataset(few, mano=mano)
    for number in (0, 5, 11):
        sample = dataset[number]
        assert sample.rotations is not None
        assert sample.betas is not None
        np.testing.assert_allclose(sample.rotations, rotations[number % 6], atol=1e-6)
        np.testing.assert_allclose(sample.betas, betas[number % 6], atol=1e-6)
    findings = check_freihand(few, mano=mano)
    assert "training: MANO posed with the annotations misses the keypoints by 0.00 mm (mean)" in findings.facts
    assert not [problem for problem in findings.problems if "training" in problem]


def test_another_mano_is_noticed(few: Path, tmp_path: Path) -> None:
    annotate(few, write_mano_pickle(tmp_path / "MANO_RIGHT.pkl"), 6)
    other = load_hand_model(write_mano_pickle(tmp_path / "other.pkl", size=1.1))
    (problem,) = [text for text in check_freihand(few, mano=other).problems if "training" in text]
    assert "do not belong together" in problem


def test_renders_keep_their_own_rotations_to_their_own_model(tmp_path: Path) -> None:
    """Rotations of the open hand mean nothing to MANO: with MANO, renders are known by their keypoints alone."""
    write_images(tmp_path / "training" / "rgb", 2)
    xyz = np.stack([XYZ, XYZ])
    np.savez(tmp_path / "training_labels.npz", K=np.array([V2_K, V2_K]), xyz=xyz)
    np.savez(tmp_path / "training_meta.npz", rotations=np.tile(np.eye(3), (2, 16, 1, 1)), betas=np.zeros((2, 10)))
    assert FreiHandDataset(tmp_path)[0].rotations is not None
    mano = load_hand_model(write_mano_pickle(tmp_path / "MANO_RIGHT.pkl"))
    assert FreiHandDataset(tmp_path, mano=mano)[0].rotations is None


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set in FreiHAND's layout: 5 frames in two pictures each, another camera, no masks and no parameters."""
    write_images(tmp_path / "training" / "rgb", 10)
    for name in ("K", "xyz", "scale"):
        write_table(tmp_path, "training", name, 5)
    swap(tmp_path / "training_K.json", lambda rows: [[[4e2, 0, 97.3], *row[1:]] for row in rows])
    return tmp_path


def test_a_set_of_ones_own_is_held_against_itself(own: Path) -> None:
    findings = check_freihand(own)
    assert findings.problems == []
    assert "none of the published counts: a set of its own, checked against itself" in findings.facts
    assert FreiHandDataset(own).copies == 2
    (own / "training" / "rgb" / "00000007.jpg").unlink()
    swap(own / "training_scale.json", lambda rows: rows[:4])
    swap(own / "training_xyz.json", lambda rows: (1e3 * np.array(rows)).tolist())
    write_images(own / "training" / "mask", 6)
    problems = check_freihand(own).problems
    assert problems[0] == "training: training_scale.json holds 4 annotations instead of 5"
    assert "metres are wanted" in problems[1]
    assert problems[2:] == [
        "training/rgb: 1 of 10 images are missing, the first is 00000007.jpg",
        "training/mask: 1 images more than 5, the first is 00000005.jpg",
    ]


def test_a_set_of_ones_own_needs_its_keypoints(own: Path) -> None:
    (own / "training_xyz.json").unlink()
    assert check_freihand(own).problems == ["training: training_xyz.json is missing"]


def test_what_calls_itself_the_published_archive_is_held_against_it(own: Path) -> None:
    claims = own / "FreiHAND_pub_v2"
    claims.mkdir()
    for path in own.glob("training*"):
        path.rename(claims / path.name)
    problems = check_freihand(claims).problems
    assert "training: training_K.json holds 5 annotations instead of 32560" in problems
    assert "evaluation: neither evaluation/rgb nor evaluation_K.json is there" in problems


def test_a_rendered_split_is_no_published_one_whatever_its_count(few: Path) -> None:
    (few / "training_synthesis.json").write_text("{}")
    (few / "training_mano.json").unlink()
    write_images(few / "x", 6)
    shutil.rmtree(few / "training" / "rgb")
    (few / "x").rename(few / "training" / "rgb")
    findings = check_freihand(few)
    assert findings.problems == []
    assert "training rendered by handmesh" in findings.facts


def test_findings_go_on_after_an_error() -> None:
    findings = Findings()

    def fail() -> np.ndarray:
        raise ValueError("broken")

    assert findings.attempt(fail) is None
    assert findings.problems == ["broken"]
