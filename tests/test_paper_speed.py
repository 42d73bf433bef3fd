"""What is timed against each other is the same but for one thing, and the tables say what was measured."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the paper's claims are measured with the train extra")

from torch import nn  # noqa: E402

from handmesh.evaluation import paper_speed  # noqa: E402


def counts(model: nn.Module) -> dict[type, int]:
    found: dict[type, int] = {}
    for module in model.modules():
        found[type(module)] = found.get(type(module), 0) + 1
    return found


def test_the_two_metaformers_differ_in_their_token_mixers_alone():
    pooling, repmixer = (paper_speed.metaformer(name) for name in ("pooling", "repmixer"))
    pools = counts(pooling)[nn.AvgPool2d]
    assert pools == 12  # S12 has so many blocks
    assert nn.AvgPool2d not in counts(repmixer)
    mixers = [m for m in repmixer.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    assert len(mixers) == pools
    mlps = [sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n) for model in (pooling, repmixer)]
    assert mlps[0] == mlps[1]
    image = torch.randn(1, 3, 64, 64)
    assert pooling(image).shape == repmixer(image).shape


def test_work_is_counted_not_waiting():
    import time

    waiting, working = paper_speed.work(lambda: time.sleep(0.05)), paper_speed.work(lambda: sum(range(300_000)))
    assert max(waiting(3)) < 20
    assert min(working(3)) > 0


def test_a_training_step_of_both_forms_is_timed(monkeypatch):
    found = paper_speed.branches(turns=1, size=64, variants=("t8",), batch=2)
    row = found["variants"]["t8"]
    assert row["with"] > 0
    assert row["costs"] == pytest.approx(row["with"] / row["without"] - 1)
    assert "| t8 |" in paper_speed.table({"branches": found})
    assert "Folding" not in paper_speed.table({"branches": found})
