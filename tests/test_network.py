import dataclasses

import numpy as np
import pytest
import torch
from samples import HandList, posed_hand

from handmesh.assets import load_hand_model
from handmesh.datasets.augment import NO_AUGMENT, ImagePool
from handmesh.datasets.mixture import BatchStream, Mixture
from handmesh.evaluation.validation import measure, predict
from handmesh.model.backbone import VARIANTS, build_backbone
from handmesh.model.conventions import mediapipe_spots
from handmesh.model.hand_model import HandModel
from handmesh.model.head import HEADS, HeadOutput, build_head, cell_centres
from handmesh.model.regressor import (
    HandRegressor,
    NetworkConfig,
    Prediction,
    load_network,
    save_network,
    wrist_relative_hand,
)
from handmesh.training.losses import LossWeights, hand_size, training_loss


@pytest.fixture(scope="module")
def batch():
    mixture = Mixture([HandList([posed_hand(seed) for seed in range(6)])], [0.9])
    return BatchStream(mixture, ImagePool([]), batch_size=8, size=64, augment=NO_AUGMENT, seed=0, rank=0, steps=1)[0]


@pytest.mark.parametrize("head", HEADS)
def test_outputs_have_the_promised_shapes(head, batch):
    network = HandRegressor(NetworkConfig(head=head, input_size=64)).eval()
    with torch.no_grad():
        out, vertices, joints = network(batch.crops)
    assert out.rotations.shape == (8, 16, 3, 3)
    torch.testing.assert_close(out.rotations.transpose(-1, -2) @ out.rotations, torch.eye(3).expand(8, 16, 3, 3))
    assert out.betas.shape == (8, 10)
    assert out.camera.shape == (8, 3)
    assert (out.camera[:, 0] > 0).all()
    assert out.joints_2d.shape == (8, 21, 2)
    assert out.mask.shape == (8, 8, 8)
    assert out.presence.shape == out.right.shape == (8,)
    assert joints.shape == (8, 21, 3)
    assert vertices.shape[2] == 3
    assert joints[:, 0].abs().max() < 1e-7


def test_batch_equals_singles(batch):
    network = HandRegressor(NetworkConfig(input_size=64)).eval()
    with torch.no_grad():
        together = network(batch.crops)
        alone = torch.cat([network(crop[None]).vertices for crop in batch.crops])
    torch.testing.assert_close(together.vertices, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_feeds_a_head(variant):
    with torch.device("meta"):
        backbone = build_backbone(variant)
        channels = [info["num_chs"] for info in backbone.feature_info]
        assert [info["reduction"] for info in backbone.feature_info] == [4, 8, 16, 32]
        build_head("tokens", (channels[1], channels[2], channels[3], backbone.num_features))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="t8"):
        build_backbone("t9")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="relu6"):
        build_backbone(activation="swish")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="tokens"):
        build_head("transformer", (1, 1, 1, 1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="multiple of 32"):
        NetworkConfig(input_size=100)


def test_soft_argmax_of_a_peak_is_its_cell():
    heatmap = torch.full((1, 1, 4, 8), -50.0)
    heatmap[0, 0, 3, 2] = 50.0
    x, y = (heatmap.flatten(2).softmax(-1) @ cell_centres(heatmap))[0, 0]
    assert (x.item(), y.item()) == pytest.approx((-0.375, 0.75))


def test_perfect_prediction_has_no_loss(batch):
    """A prediction made of the targets themselves: every geometric term is zero."""
    network = HandRegressor(NetworkConfig(input_size=64)).eval()
    with torch.no_grad():
        prediction = network(batch.crops)
    posed = prediction.head._replace(rotations=batch.rotations, betas=batch.betas, joints_2d=batch.joints_2d)
    vertices, joints = wrist_relative_hand(network.hand_model, batch.rotations, batch.betas)
    _, terms = training_loss(Prediction(posed, vertices, joints), batch, network.hand_model, LossWeights())
    for name in ("joints_2d", "rotations", "betas", "joints", "vertices"):
        assert terms[name].item() < 1e-5, name


def test_keypoints_depths_and_the_camera_have_their_least_loss_at_the_truth(batch):
    hand_model, weights = HandModel(load_hand_model()), LossWeights()
    vertices, joints = wrist_relative_hand(hand_model, batch.rotations, batch.betas)
    camera = torch.tensor([7.0, 0.1, -0.2]).expand(8, 3)
    seen = camera[:, None, :1] * joints[..., :2] + camera[:, None, 1:]
    batch = batch._replace(joints_2d=seen)
    cells = cell_centres(torch.zeros(8, 8))
    logits = -(cells - seen[:, :, None]).square().sum(-1) / (2 * weights.heatmap_sigma**2)  # (8, 21, cells)
    heatmaps = logits.unflatten(-1, (8, 8)).requires_grad_()
    depth = joints[..., 2] / hand_size(joints)[:, 0]
    flags = torch.zeros(8)
    head = HeadOutput(batch.rotations, batch.betas, camera, seen, depth, heatmaps, torch.zeros(8, 8, 8), flags, flags)

    def terms_of(head, batch, weights=weights):
        return training_loss(Prediction(head, vertices, joints), batch, hand_model, weights)

    total, terms = terms_of(head, batch)
    for name in ("joints_2d", "projection", "depth"):
        assert terms[name].item() < 1e-5, name
    total.backward()
    assert heatmaps.grad.abs().max() < 1e-6  # the Gaussians about the keypoints
    beside = terms_of(head._replace(heatmaps=heatmaps.roll(1, -1)), batch)[1]
    assert beside["heatmaps"] > terms["heatmaps"] + 1
    outside = terms_of(head._replace(heatmaps=heatmaps.roll(1, -1)), batch._replace(joints_2d=seen + 9))[1]
    assert outside["heatmaps"] == 0
    elsewhere = head._replace(camera=camera + 1)
    assert terms_of(elsewhere, batch)[1]["projection"] > 0.5
    assert terms_of(elsewhere, batch._replace(weight_projection=flags))[1]["projection"] == 0


def test_keypoints_that_name_mediapipes_spots_teach_ours(batch):
    """A hand at the truth has no loss against MediaPipe's spots on it, and some against them as if they were ours."""
    hand_model = HandModel(load_hand_model())
    vertices, joints = wrist_relative_hand(hand_model, batch.rotations, batch.betas)
    camera = torch.tensor([7.0, 0.1, -0.2]).expand(8, 3)
    seen = camera[:, None, :1] * joints[..., :2] + camera[:, None, 1:]
    theirs = camera[:, None, :1] * (joints + mediapipe_spots(joints))[..., :2] + camera[:, None, 1:]
    flags = torch.zeros(8)
    head = HeadOutput(
        batch.rotations, batch.betas, camera, seen, flags[:, None], None, torch.zeros(8, 8, 8), flags, flags
    )
    prediction = Prediction(head, vertices, joints)
    labelled = batch._replace(joints_2d=theirs, mediapipe=torch.ones(8))
    _, terms = training_loss(prediction, labelled, hand_model, LossWeights())
    assert max(terms["joints_2d"].item(), terms["projection"].item()) < 1e-5
    _, terms = training_loss(prediction, labelled._replace(mediapipe=flags), hand_model, LossWeights())
    assert min(terms["joints_2d"].item(), terms["projection"].item()) > 0.02


def test_measures_hold_a_hands_own_spots_against_labels_that_name_those(batch):
    network = HandRegressor(NetworkConfig(input_size=64)).eval()
    prediction = predict(network, batch.crops)
    moves = prediction.head.camera[:, None, :1] * mediapipe_spots(prediction.joints)[..., :2]
    labelled = batch._replace(joints_2d=prediction.head.joints_2d + moves, mediapipe=torch.ones(8))
    assert measure(network, labelled)["2d"] < 1e-5
    assert measure(network, labelled._replace(mediapipe=torch.zeros(8)))["2d"] > 1e-3


@torch.no_grad()
def test_meshes_are_compared_in_their_own_sizes_and_guessed_depths_count_for_less(batch):
    network, weights = HandRegressor(NetworkConfig(input_size=64)).eval(), LossWeights()
    vertices, joints = wrist_relative_hand(network.hand_model, batch.rotations, batch.betas)
    true = network(batch.crops).head._replace(rotations=batch.rotations, betas=batch.betas)
    everyone = batch._replace(weight_3d=torch.ones(8), joints=joints, exact_depth=torch.ones(8))

    def terms_of(vertices, joints, batch=everyone):
        return training_loss(Prediction(true, vertices, joints), batch, network.hand_model, weights)[1]

    larger = terms_of(1.2 * vertices, 1.2 * joints)
    assert max(larger["joints"].item(), larger["vertices"].item()) < 1e-5
    deeper = joints + torch.tensor([0.0, 0.0, 0.02]) * torch.arange(21).ne(0)[:, None]
    exact = terms_of(vertices, deeper)
    guessed = terms_of(vertices, deeper, everyone._replace(exact_depth=torch.zeros(8)))
    assert guessed["joints"] < 0.8 * exact["joints"]
    assert guessed["depth"].item() == pytest.approx(weights.pseudo_depth * exact["depth"].item())


@torch.no_grad()
def test_hands_are_compared_after_alignment_where_depth_or_mesh_is_known(batch):
    network, weights = HandRegressor(NetworkConfig(input_size=64)).eval(), LossWeights()
    head = network(batch.crops).head
    vertices, joints = wrist_relative_hand(network.hand_model, batch.rotations, batch.betas)
    known = batch._replace(weight_3d=torch.ones(8), joints=joints, exact_depth=torch.ones(8))

    def aligned(vertices, joints, batch=known):
        terms = training_loss(Prediction(head, vertices, joints), batch, network.hand_model, weights)[1]
        return terms["aligned_joints"].item(), terms["aligned_vertices"].item()

    turn = torch.tensor([[0.0, -1.3, 0.0], [1.3, 0.0, 0.0], [0.0, 0.0, 1.3]])
    assert max(aligned(vertices @ turn, joints @ turn)) < 1e-4
    flat = torch.tensor([1.0, 1.0, 0.0])
    assert min(aligned(vertices * flat, joints * flat)) > 0.02
    guessed = known._replace(exact_depth=torch.zeros(8), weight_parameters=torch.zeros(8))
    assert aligned(vertices * flat, joints * flat, guessed) == (0.0, 0.0)


@torch.no_grad()
def test_who_says_what_the_crop_shows_has_the_least_loss(batch):
    network = HandRegressor(NetworkConfig(input_size=64)).eval()
    prediction = network(batch.crops)
    truth = batch._replace(mask=batch.mask.round(), weight_mask=torch.ones(8), weight_right=torch.ones(8))
    for name in ("presence", "right", "mask"):
        logits = 20 * (getattr(truth, name) - 0.5)
        for sign, low, high in ((1, 0.0, 0.01), (-1, 9.0, 11.0)):
            said = prediction._replace(head=prediction.head._replace(**{name: sign * logits}))
            assert low <= training_loss(said, truth, network.hand_model, LossWeights())[1][name] <= high, name


def test_mediapipes_spots_lie_where_its_labels_put_them(batch):
    """On a flat right hand: the wrist nearer the fingers, the knuckles nearer the wrist, the tips short of the end."""
    hand_model = HandModel(load_hand_model())
    rest = torch.eye(3).expand(1, 16, 3, 3)
    _, joints = wrist_relative_hand(hand_model, rest, torch.zeros(1, 10))
    moves = mediapipe_spots(joints)[0] * 0.095 / hand_size(joints)[0]  # metres, for a hand of the table's size
    along = torch.nn.functional.normalize(joints[0, 9] - joints[0, 0], dim=0)
    to_index = torch.nn.functional.normalize(joints[0, 5] - joints[0, 17], dim=0)
    assert moves[0] @ along > 0.010
    assert max((moves[knuckle] @ along).item() for knuckle in (5, 9, 13, 17)) < -0.004
    for tip in (8, 12, 16, 20):
        end = torch.nn.functional.normalize(joints[0, tip] - joints[0, tip - 1], dim=0)
        assert moves[tip] @ end < -0.005
    assert moves[0] @ to_index > 0.001
    assert moves[5] @ to_index < -0.002


def test_an_unknown_shape_is_drawn_towards_the_mean(batch):
    network = HandRegressor(NetworkConfig(input_size=64)).eval()
    blind = batch._replace(weight_parameters=torch.zeros(8), betas=torch.zeros(8, 10))
    with torch.no_grad():
        prediction = network(batch.crops)
        prediction = prediction._replace(head=prediction.head._replace(betas=torch.full((8, 10), -2.0)))
        terms = training_loss(prediction, blind, network.hand_model, LossWeights())[1]
        free = training_loss(prediction, blind, network.hand_model, LossWeights(mean_shape=0.0))[1]
    assert batch.presence.sum() > 5  # times .2: a weight of more than one sample
    assert terms["betas"].item() == pytest.approx(2.0)
    assert free["betas"] == 0


def test_unknown_targets_do_not_move_the_network(batch):
    network = HandRegressor(NetworkConfig(input_size=64)).train()
    zero = torch.zeros_like(batch.weight_2d)
    known = (
        "weight_2d",
        "weight_projection",
        "weight_3d",
        "weight_parameters",
        "weight_mask",
        "weight_right",
        "presence",
    )
    blind = batch._replace(**dict.fromkeys(known, zero))
    total, terms = training_loss(network(batch.crops), blind, network.hand_model, LossWeights())
    assert {name for name, term in terms.items() if term.item() != 0.0} == {"presence"}
    assert total.item() == pytest.approx(LossWeights().presence * terms["presence"].item())


def test_loss_has_gradients_everywhere_and_no_nan(batch):
    network = HandRegressor(NetworkConfig(input_size=64)).train()
    total, _ = training_loss(network(batch.crops), batch, network.hand_model, LossWeights())
    total.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_checkpoint_there_and_back(tmp_path, batch):
    network = HandRegressor(NetworkConfig(head="global", input_size=64)).eval()
    save_network(network, tmp_path / "a.pt")
    again = load_network(tmp_path / "a.pt").eval()
    assert again.config == network.config
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]
    with torch.no_grad():
        np.testing.assert_array_equal(network(batch.crops).vertices, again(batch.crops).vertices)


def test_bad_checkpoints_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_network(tmp_path / "nothing.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk"):
        load_network(tmp_path / "junk.pt")
    network = HandRegressor(NetworkConfig(input_size=64))
    other = dataclasses.replace(network.config, head="global")
    torch.save({"config": dataclasses.asdict(other), "network": network.state_dict()}, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match="mixed"):
        load_network(tmp_path / "mixed.pt")
