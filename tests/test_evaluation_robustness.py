"""Corruptions are repeatable and grow with severity; scores follow ImageNet-C's formula."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from samples import posed_hand, write_freihand

from handmesh.datasets.freihand import FreiHandDataset
from handmesh.evaluation.robustness import (
    CLEAN,
    KINDS,
    SEVERITIES,
    TestHands,
    corrupt,
    corruption_errors,
    make_crops,
    measure_conditions,
    spread_rows,
    target_of,
)
from handmesh.runtime import Graph

SIZE = 64
SMALL_IMAGE = 48  # px; blurs at 224 px would take minutes


@pytest.fixture(scope="module")
def picture():
    return np.ascontiguousarray(posed_hand(3).image[64 : 64 + SMALL_IMAGE, 64 : 64 + SMALL_IMAGE])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_the_picture_repeatably_and_leaves_the_global_generator_alone(picture, kind):
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = corrupt(picture, kind, 3, seed=1), corrupt(picture, kind, 3, seed=1)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert first.shape == picture.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != picture).any()


def test_higher_severity_is_farther_from_the_clean_picture(picture):
    for kind in ("gaussian_noise", "contrast", "brightness"):
        distance = [
            float(np.abs(corrupt(picture, kind, severity, 0).astype(float) - picture).mean()) for severity in SEVERITIES
        ]
        assert distance == sorted(distance), kind


def test_unknown_kinds_and_severities_are_named(picture):
    with pytest.raises(ValueError, match="glass_blur"):
        corrupt(picture, "rain", 1, 0)
    with pytest.raises(ValueError, match="severity 6"):
        corrupt(picture, "snow", 6, 0)


def perfect_but_for(crops, dataset, rows):
    """A network that knows the truth of clean crops and is off by a centimetre elsewhere."""
    clean = {target_of(dataset[row], SIZE).crop.tobytes(): row for row in rows}

    def run(inputs):
        joints, joints_2d = [], []
        for number, crop in enumerate(inputs["crop"]):
            row = clean.get(crop.tobytes())
            truth = target_of(dataset[rows[number] if row is None else row], SIZE)
            noise = np.random.default_rng(number).normal(0, 0.01, (21, 3)) * (row is None)
            joints.append(truth.joints + noise)
            joints_2d.append(truth.joints_2d)
        return {"joints": np.array(joints), "joints_2d": np.array(joints_2d)}

    return Graph(None, {}, run)  # pyright: ignore[reportArgumentType]


def test_conditions_are_cut_once_and_measured(tmp_path, monkeypatch):
    import handmesh.evaluation.robustness as robustness

    write_freihand(tmp_path / "set", 3, split="evaluation")
    calls = []

    def darker(image, kind, severity, seed):
        calls.append((kind, severity))
        return (image * (1 - severity / 10)).astype(np.uint8)

    monkeypatch.setattr(robustness, "corrupt", darker)
    hands = TestHands(tmp_path / "set", SIZE, spread_rows(tmp_path / "set", 2))
    assert hands.rows == (0, 2)
    make_crops(hands, tmp_path / "crops", workers=1)
    assert len(calls) == 2 * 75
    make_crops(hands, tmp_path / "crops", workers=1)
    assert len(calls) == 2 * 75
    dataset = FreiHandDataset(tmp_path / "set", "evaluation")
    errors = measure_conditions(perfect_but_for(None, dataset, hands.rows), hands, tmp_path / "crops")
    assert list(errors) == [CLEAN, *KINDS]
    assert errors[CLEAN]["pa_mpjpe_mm"] == pytest.approx([0.0], abs=1e-6)
    assert all(len(errors[kind]["pa_mpjpe_mm"]) == 5 for kind in KINDS)
    assert 3 < errors["fog"]["pa_mpjpe_mm"][0] < 25
    with pytest.raises(ValueError, match="choose another folder"):
        make_crops(TestHands(tmp_path / "set", 128, (0,)), tmp_path / "crops", workers=1)
    write_freihand(tmp_path / "other" / "set", 4, split="evaluation")
    with pytest.raises(ValueError, match="choose another folder"):
        make_crops(TestHands(tmp_path / "other" / "set", SIZE, (0,)), tmp_path / "crops", workers=1)


def test_scores_are_imagenet_cs():
    reference = {CLEAN: {"e": [10.0]}, **{kind: {"e": [20.0] * 5} for kind in KINDS}}
    half = {CLEAN: {"e": [5.0]}, **{kind: {"e": [10.0] * 5} for kind in KINDS}}
    half["fog"] = {"e": [20.0] * 5}
    scores = corruption_errors(half, reference, "e")
    assert scores["fog"] == 1.0
    assert scores["snow"] == 0.5
    assert scores["mce"] == pytest.approx((14 * 0.5 + 1) / 15)
    assert scores["relative_mce"] == pytest.approx((14 * 0.5 + 1.5) / 15)


def test_a_reference_that_does_not_fit_is_named_before_anything_is_measured(tmp_path):
    script = Path(__file__).parents[1] / "eval" / "robustness.py"
    spec = importlib.util.spec_from_file_location("eval_robustness", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    centre = json.loads(module.REFERENCE.read_text())["centre_mm"]
    assert set(module.read_reference(module.REFERENCE, 100, centre)) >= {"weights", "sha256", "errors"}
    for path, hands, place, message in (
        (tmp_path / "none.json", 100, centre, "no result"),
        (module.REFERENCE, 7, centre, "give --hands 100"),
        (module.REFERENCE, 100, [0.0, 0.0, 700.0], "other hands"),
    ):
        with pytest.raises(SystemExit, match=message):
            module.read_reference(path, hands, place)
