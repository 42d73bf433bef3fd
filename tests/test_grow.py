import pytest
import torch
from test_deploy import FOLD_TOLERANCE_MM, seasoned

from handmesh.model.deploy import fold, parity_mm
from handmesh.model.grow import grow_from
from handmesh.model.regressor import HandRegressor, NetworkConfig, save_network
from handmesh.training.loop import load_initial

CROPS = torch.randint(0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def larger(variant="t12"):
    torch.manual_seed(3)
    return HandRegressor(NetworkConfig(variant=variant, input_size=64))


def test_a_grown_network_computes_what_the_smaller_one_does_before_and_after_folding():
    smaller, network = seasoned("t8"), larger()
    grow_from(smaller.state_dict(), network)
    assert parity_mm(network.eval(), smaller, CROPS) < FOLD_TOLERANCE_MM
    assert parity_mm(fold(network), smaller, CROPS) < FOLD_TOLERANCE_MM


def test_what_was_added_learns_from_the_first_steps():
    smaller, network = seasoned("t8"), larger()
    grow_from(smaller.state_dict(), network)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    for _ in range(2):  # connections to new channels and blocks come first, what is before them follows
        optimizer.zero_grad()
        network.train()(CROPS).vertices.square().sum().backward()
        optimizer.step()
    assert not [name for name, value in network.backbone.named_parameters() if not value.grad.any()]


def test_only_smaller_variants_grow_and_nothing_is_changed_by_others():
    network = larger("t8")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="only smaller variants can grow"):
        grow_from(larger("t12").state_dict(), network)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_a_run_starts_from_the_checkpoint_of_a_smaller_variant(tmp_path):
    smaller, network = seasoned("t8"), larger()
    save_network(smaller, tmp_path / "t8.pt")
    load_initial(network, tmp_path / "t8.pt")
    assert parity_mm(network.eval(), smaller, CROPS) < FOLD_TOLERANCE_MM
