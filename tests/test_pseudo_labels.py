"""Labels by our own networks: every view is brought back into the photo, and what views dispute is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
from hands import sphere_hand
from samples import posed_hand

from handmesh import cli
from handmesh.crop import roll, view_rotation
from handmesh.datasets.photos import PhotoDataset
from handmesh.datasets.pseudo_labels import label_folder, label_hands
from handmesh.estimator import HandMeshEstimator
from handmesh.records import Camera
from handmesh.video import read_picture

SAMPLE = Path(__file__).parent.parent / "demos" / "sample_1.jpg"
FLIP = np.array([-1.0, 1.0, 1.0])
_COLOURS = [(255, 60 + 9 * number, 255 - 9 * number) for number in range(21)]


class Oracle:
    """Finds the one hand whose joints are drawn in colours of their own, and knows it in 3D.

    It sees by the joints in the picture how the view is mirrored and turned."""

    def __init__(self, joints_2d, joints, side="right"):
        self.joints_2d, self.joints, self.side = joints_2d, joints, side
        self.cameras = []

    @property
    def photo(self):
        picture = np.full((200, 260, 3), 20, np.uint8)
        for (x, y), colour in zip(self.joints_2d, _COLOURS, strict=True):
            cv2.circle(picture, (round(x), round(y)), 2, colour, -1)
        return picture

    def __call__(self, view, camera):
        self.cameras.append(camera)
        found = [np.argwhere(np.abs(view.astype(int) - c).max(-1) < 4) for c in _COLOURS]
        seen = np.array([where.mean(0)[::-1] for where in found])
        a, b = (points - points.mean(0) for points in (self.joints_2d.round(), seen))
        linear = np.linalg.lstsq(a, b, rcond=None)[0].T
        mirrored = np.linalg.det(linear) < 0
        x, y = (np.diag([-1.0, 1.0]) @ linear if mirrored else linear)[:, 0]
        joints = self.joints @ roll(np.arctan2(y, x)).T
        side = {"right": "left", "left": "right"}[self.side] if mirrored else self.side
        hand = sphere_hand(side)
        return [replace(hand, joints=joints * FLIP if mirrored else joints, joints_2d=seen)]


@pytest.fixture
def oracle():
    """A hand off the middle whose joints lie well apart."""
    angles = np.linspace(0, 2 * np.pi, 21, endpoint=False)
    joints_2d = np.stack([150 + 60 * np.cos(angles), 90 + 50 * np.sin(angles)], axis=1)
    return Oracle(joints_2d, np.random.default_rng(1).normal(0, 0.05, (21, 3)))


def test_views_are_brought_back_exactly(oracle):
    (label,) = label_hands(oracle.photo, [oracle])
    assert np.abs(label.joints_2d - oracle.joints_2d.round()).max() < 0.4
    middle = (label.joints_2d.min(0) + label.joints_2d.max(0)) / 2
    photo_camera = Camera.from_fov(260, 200)
    ray = np.linalg.solve(photo_camera.matrix, [*middle, 1.0])
    np.testing.assert_allclose(label.joints, oracle.joints @ view_rotation(ray), atol=2e-3)
    assert (label.side, label.views, label.of_this_side) == ("right", 6, 6)
    assert label.spread < 0.003
    assert len(oracle.cameras) == 6
    assert all(camera.fx == pytest.approx(photo_camera.fx) for camera in oracle.cameras)


def test_spread_is_the_distance_between_views_as_a_share_of_the_hand(oracle):
    calls = count()

    def shaken(view, camera):
        (hand,) = oracle(view, camera)
        return [replace(hand, joints_2d=hand.joints_2d + (12.0 if next(calls) == 0 else 0.0))]

    (label,) = label_hands(oracle.photo, [shaken])
    assert label.spread == pytest.approx(12 * np.sqrt(2) / 6 / 120, abs=0.004)
    assert np.abs(label.joints_2d - oracle.joints_2d.round()).max() < 0.4


@pytest.mark.parametrize("views", [0, 3])
def test_a_hand_that_many_views_miss_is_left_out(oracle, views):
    calls = count()
    assert label_hands(oracle.photo, [lambda *a, **k: oracle(*a, **k) if next(calls) < views else []]) == []


def test_a_hand_whose_side_is_disputed_is_left_out(oracle):
    unsure = Oracle(oracle.joints_2d, oracle.joints, "left")
    assert label_hands(oracle.photo, [oracle]) != []
    assert label_hands(oracle.photo, [oracle, unsure]) == []


def test_a_mirrored_photo_has_the_mirrored_label():
    photo, estimator = read_picture(SAMPLE), HandMeshEstimator.from_pretrained("fast", threads=1)
    labels = label_hands(photo, [estimator])
    mirrored = label_hands(np.ascontiguousarray(photo[:, ::-1]), [estimator])
    assert len(labels) == len(mirrored) >= 1
    for label, image in zip(labels, mirrored, strict=True):
        size = np.ptp(label.joints_2d, axis=0).max()
        back = [photo.shape[1] - 1, 0] + image.joints_2d * [-1, 1]
        assert np.linalg.norm(back - label.joints_2d, axis=1).mean() < 0.01 * size
        np.testing.assert_allclose(image.joints * FLIP, label.joints, atol=4e-3)
        assert {label.side, image.side} == {"left", "right"}
        assert label.spread == pytest.approx(image.spread, abs=0.003)


def test_a_folder_gets_labels_that_training_reads(oracle, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "known.png"):
        cv2.imwrite(str(folder / name), oracle.photo[..., ::-1])
    cv2.imwrite(str(folder / "empty.png"), np.zeros((60, 60, 3), np.uint8))
    (folder / "broken.png").write_bytes(b"no picture")
    hand = posed_hand(0)
    trusted = {"side": "right", "kp2d": hand.joints_2d.tolist(), "kp3d": hand.joints.tolist(), "spread": 0.01}
    (folder / "labels.json").write_text(json.dumps({"known.png": {"hands": [trusted]}}))

    def sees(view, camera):
        return oracle(view, camera) if view.max() > 100 else []

    assert label_folder(folder, tmp_path / "out" / "photos", [sees]) == (3, 1)
    assert sorted(path.name for path in (tmp_path / "out" / "photos").iterdir()) == ["a.png", "labels.json"]
    (sample,) = list(PhotoDataset([tmp_path / "out" / "photos"]))
    assert sample.side == "right"
    assert sample.trust_2d == 1.0
    assert sample.alone
    for x, y in sample.joints_2d:
        assert sample.image[round(y), round(x)].max() > 150


def test_mistakes_are_named(tmp_path, capsys):
    same = [str(tmp_path / "a" / "train"), str(tmp_path / "b" / "train")]
    assert cli.main(["data", "label", *same, "--out", str(tmp_path / "out")]) == 1
    assert "one name" in capsys.readouterr().err
    assert cli.main(["data", "label", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "set").mkdir()
    cv2.imwrite(str(tmp_path / "set" / "a.png"), np.zeros((40, 40, 3), np.uint8))
    assert cli.main(["data", "label", str(tmp_path / "set"), "--out", str(tmp_path)]) == 1
    assert "--out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["a.png"]
