import pytest
import torch
from mano_imitation import write_mano_pickle
from test_deploy import FOLD_TOLERANCE_MM, seasoned

from handmesh.assets import load_hand_model
from handmesh.model.deploy import fold, parity_mm
from handmesh.model.regressor import HandRegressor, NetworkConfig
from handmesh.model.unfold import unfold


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (4, 64, 64, 3), generator=generator, dtype=torch.uint8) for _ in range(2)]


def test_an_unfolded_network_computes_the_same_and_folds_back(batches):
    folded = fold(seasoned("t8"))
    network = unfold(folded, batches)
    crops = torch.cat(batches)
    assert parity_mm(network, folded, crops) < FOLD_TOLERANCE_MM
    assert parity_mm(fold(network), folded, crops) < FOLD_TOLERANCE_MM
    assert sum(p.numel() for p in network.parameters()) > sum(p.numel() for p in folded.parameters())


def test_in_training_mode_it_computes_the_same_on_the_crops_that_set_its_norms(batches):
    folded = fold(seasoned("t8"))
    crops = torch.cat(batches)
    network = unfold(folded, [crops])
    assert network.training
    with torch.no_grad():
        moved = (network(crops).vertices - folded(crops).vertices).norm(dim=-1).max()
    assert float(moved) * 1e3 < 10 * FOLD_TOLERANCE_MM  # batch norms divide by deviations that may be small


def test_every_branch_of_an_unfolded_network_learns(batches):
    network = unfold(fold(seasoned("t8")), batches)
    network(batches[0]).vertices.square().sum().backward()
    idle = [name for name, p in network.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_attention_and_missing_crops_are_refused(batches):
    with pytest.raises(ValueError, match="has attention"):
        unfold(fold(seasoned("sa12")), batches)
    with pytest.raises(ValueError, match="no crops"):
        unfold(fold(seasoned("t8")), [])


def test_an_unfolded_network_poses_the_hand_model_that_it_was_trained_on(batches, tmp_path):
    hand_model = load_hand_model(write_mano_pickle(tmp_path / "MANO_RIGHT.pkl"))
    folded = fold(HandRegressor(NetworkConfig(input_size=64), hand_model))
    network = unfold(folded, batches).eval()
    assert network(batches[0]).vertices.shape == (4, 778, 3)
    assert parity_mm(folded, network, batches[0]) < FOLD_TOLERANCE_MM
