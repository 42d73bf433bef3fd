import numpy as np
import pytest
import torch

from handmesh.assets import load_hand_model
from handmesh.model.hand_model import HandModel
from handmesh.model.head import Lifter, decode_parameters
from handmesh.model.regressor import HandRegressor, NetworkConfig, wrist_relative_hand
from handmesh.model.rotations import rotvec_to_rotmat
from handmesh.training.lifting import PoseBatches, pretrain
from handmesh.training.loop import load_initial


def batches(seed: int = 0) -> PoseBatches:
    rng = np.random.default_rng(seed)
    rotvecs = torch.tensor(rng.normal(size=(50, 16, 3)) * 0.3, dtype=torch.float32)
    return PoseBatches(rotvec_to_rotmat(rotvecs).numpy(), rng.normal(size=(50, 10)), seed)


def test_hand_of_keypoints_has_the_keypoints_of_the_hand():
    _, _, rotations, betas, joints = batches().draw(8)
    full = HandModel(load_hand_model())
    torch.testing.assert_close(joints, wrist_relative_hand(full, rotations, betas)[1], atol=1e-6, rtol=0)


def test_drawn_hands_fill_their_crops():
    joints_2d, depth, *_ = batches().draw(256)
    extent = (joints_2d.amax(1) - joints_2d.amin(1)).amax(-1)
    assert extent.min() > 2 / 1.6 / 1.3
    assert extent.max() < 2 / 1.6 / 0.75
    assert depth[:, 0].abs().max() == 0.0


def test_lifter_follows_a_shifted_hand():
    """Moving the keypoints moves the camera and nothing else."""
    lifter = Lifter().eval()
    joints_2d, depth, *_ = batches().draw(4)
    with torch.no_grad():
        here = decode_parameters(lifter(joints_2d, depth))
        there = decode_parameters(lifter(joints_2d + torch.tensor([0.2, -0.1]), depth))
    torch.testing.assert_close(here[0], there[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(there[2] - here[2], torch.tensor([[0.0, 0.2, -0.1]]).expand(4, 3), atol=1e-4, rtol=0)


def test_pretraining_learns_and_serves_a_network(tmp_path):
    torch.manual_seed(0)
    lifter = Lifter()
    start = pretrain(lifter, batches(), steps=1, batch_size=64, rate=0.0)
    error = pretrain(lifter, batches(), steps=250, batch_size=128)
    assert error < 0.4 * start
    torch.save({"lift": lifter.state_dict()}, tmp_path / "lift.pt")
    network = HandRegressor(NetworkConfig(input_size=64))
    load_initial(network, tmp_path / "lift.pt")
    assert network.head.lift.state_dict()["regress.leave.bias"].equal(lifter.state_dict()["regress.leave.bias"])  # pyright: ignore
    with pytest.raises(ValueError, match="no network, backbone or lifter"):
        load_initial(HandRegressor(NetworkConfig(input_size=64, head="global")), tmp_path / "lift.pt")
