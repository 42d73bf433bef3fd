import dataclasses

import numpy as np
import pytest
import torch
from mano_imitation import write_mano_pickle
from samples import HandList, posed_hand
from test_deploy import seasoned

from handmesh.assets import load_hand_model
from handmesh.datasets.augment import NO_AUGMENT, ImagePool, make_target
from handmesh.datasets.mixture import Mixture
from handmesh.datasets.sample import collate
from handmesh.model.regressor import HandRegressor, NetworkConfig, save_network
from handmesh.skeleton import MANO_VERTEX_COUNT
from handmesh.training.config import TrainConfig
from handmesh.training.distillation import Teachers, distillation_loss
from handmesh.training.loop import Trainer
from handmesh.training.losses import LossWeights


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return collate([make_target(posed_hand(seed), 64, NO_AUGMENT, ImagePool([]), rng) for seed in range(3)])


def test_a_network_has_nothing_to_learn_from_itself(batch):
    network = seasoned("t8")
    prediction = network(batch.crops)
    loss, distance = distillation_loss(prediction, Teachers([network]).teach(batch.crops), batch, LossWeights())
    assert loss.item() < 1e-4
    assert distance.item() < 1e-5


def test_several_teachers_are_averaged(batch):
    one, other = seasoned("t8"), seasoned("t8", size=96)
    for parameter in other.parameters():
        parameter.data.mul_(1.01)
    lessons = [Teachers([network]).teach(batch.crops) for network in (one, other)]
    both = Teachers([one, other]).teach(batch.crops)
    for mean, first, second in zip(both, *lessons, strict=True):
        assert not torch.equal(first, second)
        torch.testing.assert_close(mean, (first + second) / 2)


def test_left_hands_teach_keypoints_only_and_empty_crops_nothing(batch):
    network, weights = seasoned("t8"), LossWeights()
    prediction = network(batch.crops)
    lesson = Teachers([network]).teach(batch.crops)
    shifted = lesson._replace(rotations=lesson.rotations + 1, joints=lesson.joints + 1, depth=lesson.depth + 1)
    left = batch._replace(right=torch.zeros(3))
    assert distillation_loss(prediction, shifted, batch, weights)[0].item() > 1
    assert distillation_loss(prediction, shifted, left, weights)[0].item() < 1e-4
    elsewhere = lesson._replace(joints_2d=lesson.joints_2d + 1)
    assert distillation_loss(prediction, elsewhere, left, weights)[0].item() == pytest.approx(
        weights.joints_2d, rel=1e-3
    )
    empty = batch._replace(presence=torch.zeros(3))
    assert distillation_loss(prediction, elsewhere, empty, weights)[0].item() == 0


def test_a_student_comes_closer_to_its_teacher(tmp_path):
    save_network(seasoned("t8"), tmp_path / "teacher.pt")
    hands = HandList([posed_hand(seed) for seed in range(4)])
    config = TrainConfig(
        network=NetworkConfig(input_size=64), samples=48, batch_size=4, warmup=4, learning_rate=1e-3, decay=0.0
    )
    config = dataclasses.replace(config, distillation=100.0, augment=NO_AUGMENT)
    (tmp_path / "run").mkdir()
    teachers = Teachers.load([tmp_path / "teacher.pt"])
    trainer = Trainer(config, tmp_path / "run", Mixture([hands], [1.0]), [], {}, teachers=teachers)
    distances = [trainer._train_step(batch)["teacher"] for batch in trainer._batches()]
    assert sum(distances[-3:]) < 0.8 * sum(distances[:3])


def test_a_teacher_poses_the_students_hand(tmp_path):
    """Rotations of another hand model mean another hand, so MANO's student has MANO's teacher and no other."""
    mano = load_hand_model(write_mano_pickle(tmp_path / "MANO_RIGHT.pkl"))
    save_network(HandRegressor(NetworkConfig(input_size=64), mano), tmp_path / "mano.pt")
    (teacher,) = Teachers.load([tmp_path / "mano.pt"], mano).networks
    assert teacher.hand_model.vertex_count == MANO_VERTEX_COUNT
    with pytest.raises(ValueError, match="give the file of the model"):
        Teachers.load([tmp_path / "mano.pt"])


def test_no_teacher_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        Teachers([])
