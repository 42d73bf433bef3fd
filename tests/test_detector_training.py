"""The detector's losses, on cases with known answers, and its resumable loop."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import graphs
import numpy as np
import pytest
import torch

from handmesh.datasets.detection import Hands, Photo, encode
from handmesh.datasets.frame_composer import ComposerConfig, Pictures
from handmesh.model.detector import STRIDE, DetectorNetwork, DetectorOutput, export_detector
from handmesh.training.curves import append_row
from handmesh.training.detector import (
    DetectorConfig,
    DetectorTrainer,
    FrameStream,
    box_loss,
    centre_loss,
    detector_loss,
    mean_network,
    publish,
    published_network,
    stack_targets,
)

WIDTH, HEIGHT = 96, 64


def _pictures() -> Pictures:
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(20, 60, (1, 21, 2)).astype(np.float32)
    yes = np.ones(1, bool)
    photo = Photo(rng.integers(0, 256, (80, 80, 3), np.uint8), Hands(keypoints, yes, yes, yes))
    return Pictures([[photo]], [1.0], [Photo(np.full((90, 120, 3), 77, np.uint8))], [])


def _config(**changes: int) -> DetectorConfig:
    return DetectorConfig(batch_size=2, composer=ComposerConfig(width=WIDTH, height=HEIGHT), **changes)


def _cell(*distances: float) -> torch.Tensor:
    return torch.tensor(distances).view(1, 4, 1, 1)


@pytest.mark.parametrize(
    ("predicted", "wanted", "expected"),
    [
        ((5.0, 5, 5, 5), (5.0, 5, 5, 5), 0.0),
        ((5.0, 5, 5, 5), (5.0, 5, 0, 5), 0.5),  # one is half of the other: the hull is the union
        ((0.0, 5, 5, 5), (5.0, 5, 0, 5), 1.0),  # side by side: nothing shared, hull = union
        ((-2.0, 5, 4, 5), (4.0, 5, -2, 5), 1 + 1 / 2),  # apart by 4 of a hull of 8
    ],
)
def test_box_loss_of_known_boxes(predicted: tuple, wanted: tuple, expected: float) -> None:
    assert box_loss(_cell(*predicted), _cell(*wanted)).item() == pytest.approx(expected, abs=1e-5)


def test_box_loss_is_symmetric_and_pulls_boxes_together() -> None:
    torch.manual_seed(0)
    one, two = torch.rand(1, 4, 8, 8) * 20, torch.rand(1, 4, 8, 8) * 20
    torch.testing.assert_close(box_loss(one, two), box_loss(two, one))
    moving = one.clone().requires_grad_()
    before = box_loss(moving, two).sum()
    before.backward()
    assert moving.grad is not None
    assert box_loss(one - 0.01 * moving.grad, two).sum() < before


def test_centre_loss_forgives_neighbours_and_only_them() -> None:
    heatmap = torch.tensor([[[[1.0, 0.9, 0.0]]]])
    sure = torch.full_like(heatmap, 4.0)
    at_centre, beside, far = centre_loss(sure, heatmap).flatten().tolist()
    assert at_centre < 1e-4
    assert beside < 1e-3
    assert far > 3.5
    assert centre_loss(-sure, heatmap).flatten()[0] > 3.5


def test_perfect_answers_cost_nothing() -> None:
    hands = Hands(
        np.array([[[20.0, 16]] * 20 + [[50.0, 46]]], np.float32), np.array([False]), np.array([True]), np.array([True])
    )
    targets = stack_targets([encode(hands, WIDTH, HEIGHT, STRIDE)])
    centre = torch.where(targets["heatmap"] >= 1, 20.0, -20.0)
    side = torch.full_like(centre, -20.0)
    # The triangle's points all lie at one place, so it says nothing of what faces the camera.
    output = DetectorOutput(centre, targets["boxes"], side, targets["triangle"], side)
    total, terms = detector_loss(output, targets, _config())
    assert total.item() < 1e-5
    assert set(terms) == {"centre", "box", "side", "triangle", "facing"}


def test_ignored_cells_cost_nothing() -> None:
    unsure = Hands(np.full((1, 21, 2), 40, np.float32), *(np.array([flag]) for flag in (True, True, False)))
    targets = stack_targets([encode(unsure, WIDTH, HEIGHT, STRIDE)])
    alarm = torch.where(targets["counted"] == 0, 20.0, -20.0)
    output = DetectorOutput(alarm, torch.ones(1, 4, *alarm.shape[2:]), alarm, targets["triangle"], alarm)
    assert detector_loss(output, targets, _config())[0].item() < 1e-5


def test_rate_warms_up_and_falls_to_a_hundredth() -> None:
    config = DetectorConfig(samples=1000, warmup=100, learning_rate=1.0)
    assert config.rate_at(0) == pytest.approx(0.01)
    assert max(config.rate_at(i) for i in range(1000)) == pytest.approx(config.rate_at(100), abs=0.02)
    assert config.rate_at(1000) == pytest.approx(0.01)


def test_a_batch_is_a_function_of_its_step() -> None:
    stream = FrameStream(_pictures(), _config(samples=8))
    assert len(stream) == 4
    (one, targets_one), (two, targets_two) = stream[2], stream[2]
    assert torch.equal(one, two)
    assert all(torch.equal(targets_one[name], targets_two[name]) for name in targets_one)
    assert not torch.equal(one, stream[3][0])


def test_processes_share_what_one_would_see() -> None:
    config = DetectorConfig(batch_size=4, composer=ComposerConfig(width=WIDTH, height=HEIGHT))
    whole, _ = FrameStream(_pictures(), config)[3]
    shares = [FrameStream(_pictures(), config, rank, 2)[3][0] for rank in (0, 1)]
    assert torch.equal(torch.cat(shares), whole)
    with pytest.raises(ValueError, match="cannot be shared by 3"):
        FrameStream(_pictures(), config, 0, 3)


def test_a_batch_holds_mirror_images_with_swapped_sides() -> None:
    config = replace(_config(samples=40), composer=ComposerConfig(width=WIDTH, height=HEIGHT, scene=1.0))
    stream, sides = FrameStream(_pictures(), config), []
    for step in range(4):
        images, targets = stream[step]
        assert torch.equal(images[1], images[0].flip(1))
        assert torch.allclose(targets["heatmap"][1], targets["heatmap"][0].flip(-1), atol=1e-4)
        for frame in range(2):
            known = targets["right_weight"][frame] > 0
            sides.append(set(targets["right"][frame][known].tolist()))
        assert len(sides[-1]) == len(sides[-2]) <= 1
        assert not sides[-1] & sides[-2]
    assert any(sides)


def test_coarse_frames_come_first_and_hands_keep_their_pixels() -> None:
    config = DetectorConfig(samples=1000, batch_size=10, coarse=0.3)
    first, last = config.composer_at(29), config.composer_at(30)
    assert (first.width, first.height) == config.coarse_size
    assert last == config.composer
    assert first.width * first.hand_sides[0] == pytest.approx(last.width * last.hand_sides[0])


def _varied_network() -> DetectorNetwork:
    torch.manual_seed(3)
    network = DetectorNetwork()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    for head in (network.centre, network.box, network.right, network.palm):
        torch.nn.init.normal_(head.bias, std=0.2)  # the exporter merges parameters that are alike
    return network


def test_a_published_detector_can_be_trained_on(tmp_path: Path) -> None:
    """It computes what the file computes: with the stored moments everywhere, with a batch's own on that batch."""
    original = _varied_network()
    path = export_detector(original.eval(), tmp_path / "detector.onnx", WIDTH, HEIGHT)
    frames = torch.randint(0, 256, (4, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    network = published_network(path, frames)
    for seen in (frames, frames.flip(1)):
        expected, found = original(seen), network(seen)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=5e-3, atol=0.2)  # stored in float16
        torch.testing.assert_close(found.centre, expected.centre, rtol=5e-3, atol=0.02)
    torch.testing.assert_close(network.train()(frames).boxes, network.eval()(frames).boxes, rtol=2e-2, atol=0.5)


def test_dead_channels_keep_their_scale(tmp_path: Path) -> None:
    original = _varied_network()
    stem = original.get_parameter("backbone.conv_stem.weight")
    with torch.no_grad():
        stem[0] *= 1e-5
    path = export_detector(original.eval(), tmp_path / "detector.onnx", WIDTH, HEIGHT)
    frames = torch.randint(0, 256, (2, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    network = published_network(path, frames)
    largest = max(m.weight.abs().max().item() for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    assert largest < 1e3
    torch.testing.assert_close(network(frames).boxes, original(frames).boxes, rtol=5e-3, atol=0.2)


def test_another_graph_is_no_detector_to_start_from(tmp_path: Path) -> None:
    path = graphs.build_detector_graph(tmp_path / "stub.onnx")
    with pytest.raises(ValueError, match="lacks the layer backbone"):
        published_network(path, torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the loader's own fork
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, pieces: int) -> DetectorNetwork:
        folder.mkdir()
        for piece in range(pieces):
            torch.manual_seed(0)
            trainer = DetectorTrainer(_config(samples=8), folder, _pictures(), DetectorNetwork())
            minutes = float("inf") if piece == pieces - 1 else 0.0  # one step
            assert trainer.run(minutes=minutes, workers=0) == (piece == pieces - 1)
        return trainer.best

    whole, pieces = run(tmp_path / "whole", 1), run(tmp_path / "pieces", 3)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_log_has_means_over_the_steps_since_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trainer = DetectorTrainer(_config(samples=104), tmp_path, _pictures(), DetectorNetwork())
    trainer.step = 47  # of 52
    monkeypatch.setattr(trainer, "_batches", lambda _: iter([(torch.empty(0), {})] * 5))
    monkeypatch.setattr(trainer, "_train_step", lambda *_: {"loss": 2.0})
    monkeypatch.setattr(trainer, "save", lambda: None)
    assert trainer.run()
    with (tmp_path / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["seen"], row["loss"]) == ("100", "2")


def test_a_resumed_run_writes_no_row_twice_and_never_goes_back(tmp_path: Path) -> None:
    def start(samples: int) -> DetectorTrainer:
        torch.manual_seed(0)
        return DetectorTrainer(_config(samples=samples), tmp_path, _pictures(), DetectorNetwork())

    trainer = start(200)
    trainer.step = 30
    trainer.save()
    for seen in (50, 100):
        append_row(tmp_path / "log.csv", {"seen": seen, "loss": 1.0})
    start(200)
    assert (tmp_path / "log.csv").read_text().splitlines() == ["seen,loss", "50,1"]
    with pytest.raises(ValueError, match="60 samples already"):
        start(40)


def test_a_run_that_is_told_to_stop_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = DetectorTrainer(_config(samples=200), tmp_path, _pictures(), DetectorNetwork())
    assert not trainer.run(workers=0, stopped=lambda: True)
    assert DetectorTrainer(_config(samples=200), tmp_path, _pictures(), DetectorNetwork()).step == 1


def test_another_batch_size_cannot_resume(tmp_path: Path) -> None:
    torch.manual_seed(0)
    DetectorTrainer(_config(samples=8), tmp_path, _pictures(), DetectorNetwork()).save()
    with pytest.raises(ValueError, match="batches of 2"):
        DetectorTrainer(DetectorConfig(batch_size=4), tmp_path, _pictures(), DetectorNetwork())


def test_the_mean_of_start_and_end_counts_both_by_their_shares() -> None:
    start, end = _varied_network(), _varied_network()
    before = {name: value.clone() for name, value in end.state_dict().items()}
    mean, swapped = mean_network(start, end, 0.25).state_dict(), mean_network(end, start, 0.75).state_dict()
    for name, value in mean.items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(value, 0.25 * start.state_dict()[name] + 0.75 * before[name])
            torch.testing.assert_close(value, swapped[name])
    for network in (end, mean_network(start, end, 0.0)):
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name])


def test_publishing_keeps_other_entries(tmp_path: Path) -> None:
    (tmp_path / "weights.json").write_text(json.dumps({"fast": {"file": "fast.onnx"}}))
    path = publish(DetectorNetwork().eval(), tmp_path, samples=5)
    entries = json.loads((tmp_path / "weights.json").read_text())
    assert entries["fast"] == {"file": "fast.onnx"}
    assert (entries["detector"]["file"], entries["detector"]["samples"]) == (path.name, 5)
