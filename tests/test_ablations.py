"""Ablated backbones differ from FastViT in what they say and nothing else; runs resume and share their batches."""

import json
from dataclasses import replace

import pytest
import torch
from samples import write_freihand
from timm.models.fastvit import FastVit, MobileOneBlock, RepMixer

from handmesh.model.ablated import ARMS, PoolingMixer, build_arm, folded_arm
from handmesh.training.ablation_report import noise, read_results, table, write_report
from handmesh.training.ablations import ABLATIONS, CachedBatches, Protocol, run_arm

FOLD_TOLERANCE = 1e-4  # of the largest value: float32 round-off through some sixty layers
FASTVITS = [name for name in ARMS if name.startswith("fastvit")]


def largest_kernels(model):
    return {m.kernel_size[0] for m in model.modules() if isinstance(m, torch.nn.Conv2d)}


def seasoned(name):
    torch.manual_seed(0)
    model = build_arm(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize("name", ["fastvit_t8_pooling", "fastvit_t8_plain", "fastvit_t8_small_kernels"])
def test_folding_changes_nothing_and_leaves_no_branch(name):
    model, image = seasoned(name), torch.randn(2, 3, 64, 64)
    folded = folded_arm(model)
    with torch.no_grad():
        final, stages = model.forward_intermediates(image)
        other, others = folded.forward_intermediates(image)
    for mine, theirs in zip([final, *stages], [other, *others], strict=True):
        assert (mine - theirs).abs().max() < FOLD_TOLERANCE * mine.abs().max()
    assert not any(hasattr(m, "conv_kxk") for m in folded.modules())


def test_each_arm_lacks_what_its_name_says():
    questions = ("mixer", "overparameterisation", "kernels")
    full, (pooling, plain, small) = build_arm("fastvit_t8"), (build_arm(ABLATIONS[name][1]) for name in questions)
    assert 7 in largest_kernels(full)
    assert largest_kernels(small) <= {1, 3}
    assert not any(isinstance(m, RepMixer) for m in pooling.modules())
    assert sum(isinstance(m, PoolingMixer) for m in pooling.modules()) == 10  # 2 + 2 + 4 + 2 blocks
    mixers = [m for m in plain.modules() if isinstance(m, RepMixer)]
    inside = {id(block) for mixer in mixers for block in (mixer.mixer, mixer.norm)}
    outside = [m for m in plain.modules() if isinstance(m, MobileOneBlock) and id(m) not in inside]
    assert outside
    assert all(m.conv_scale is None and m.identity is None for m in outside)
    assert all(mixer.mixer.conv_scale is not None for mixer in mixers)


def test_positions_are_dropped():
    with torch.device("meta"):
        with_cpe, without = build_arm("fastvit_sa12"), build_arm("fastvit_sa12_no_cpe")
    count = [sum("pos_emb" in name for name, _ in model.named_parameters()) for model in (with_cpe, without)]
    assert count[0] > 0
    assert count[1] == 0


@pytest.mark.parametrize("name", [name for name in ARMS if name not in FASTVITS])
def test_other_backbones_feed_the_head(name):
    with torch.device("meta"):
        model = build_arm(name)
        final, stages = model.forward_intermediates(torch.zeros(2, 3, 64, 64))
    assert [64 // stage.shape[-1] for stage in stages] == [4, 8, 16, 32]
    assert [stage.shape[1] for stage in stages] == [info["num_chs"] for info in model.feature_info]
    assert final.shape[1] == model.num_features


def test_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="convnext_atto"):
        build_arm("resnet")
    assert isinstance(build_arm("fastvit_t8"), FastVit)


class Counted(torch.utils.data.Dataset):
    def __init__(self, batches):
        self.batches, self.asked = batches, 0

    def __getitem__(self, step):
        self.asked += 1
        return self.batches[step]


@pytest.fixture
def protocol(tmp_path):
    for split in ("training", "evaluation"):
        write_freihand(tmp_path / "set", 2, split=split)
    return Protocol(tmp_path / "set", tmp_path / "runs", samples=8, batch_size=4, evaluation_hands=2)


def test_an_arm_is_trained_once_and_reported(protocol, tmp_path):
    errors = run_arm("fastvit_t8", protocol)
    assert errors["hands"] == 2
    cut = sorted((tmp_path / "runs").glob("batches_64px_4_*/*.pt"))
    assert len(cut) == 2
    stream = Counted([])
    again = CachedBatches(stream, cut[0].parent)[0]
    assert stream.asked == 0
    assert again.crops.shape == (4, 64, 64, 3)
    assert run_arm("fastvit_t8", protocol) == errors
    with pytest.raises(ValueError, match="choose another --out"):
        run_arm("fastvit_t8", Protocol(tmp_path / "set", tmp_path / "runs", samples=16, batch_size=4))
    assert read_results(protocol)["fastvit_t8"].errors["2d"] == errors["2d"]


def stored(folder, protocol, arm, seed, error):
    path = folder / f"{arm}_seed{seed}" / "result.json"
    path.parent.mkdir(parents=True)
    errors = {"2d": error, "pa_mpjpe_mm": 100 * error, "pa_mpvpe_mm": 90 * error}
    path.write_text(json.dumps({"arm": arm, "protocol": protocol.describe(), "errors": errors}))


def test_results_of_other_hands_are_not_taken_for_these(protocol, tmp_path):
    stored(protocol.folder, protocol, "fastvit_t8", 1, 0.2)
    assert run_arm("fastvit_t8", protocol)["2d"] == 0.2
    for split in ("training", "evaluation"):
        write_freihand(tmp_path / "other", 3, split=split)
    with pytest.raises(ValueError, match="choose another --out"):
        run_arm("fastvit_t8", replace(protocol, data=tmp_path / "other"))


def test_table_calls_small_differences_noise(protocol):
    with pytest.raises(FileNotFoundError, match="run an ablation first"):
        read_results(protocol)
    for seed, error in ((1, 0.199), (2, 0.2), (3, 0.201)):
        stored(protocol.folder, protocol, "fastvit_t8", seed, error)
    stored(protocol.folder, protocol, "fastvit_t8_plain", 1, 0.203)
    stored(protocol.folder, protocol, "fastvit_t8_pooling", 1, 0.25)
    results = read_results(protocol)
    assert results["fastvit_t8"].errors["2d"] == pytest.approx(0.2)
    assert (noise(results) or {})["2d"] == pytest.approx(4.30 * 2**0.5 * 0.001)
    times = {"training_step_ms": 1.0, "inference_ms": 1.0}
    rows = {a: {"seeds": r.seeds, **r.errors, "backbone_parameters": 1, **times} for a, r in results.items()}
    text = table({"noise": noise(results), "arms": rows}, 64)
    assert "fastvit_t8_plain against fastvit_t8: 2D error +0.0030 (within noise)" in text
    assert "fastvit_t8_pooling against fastvit_t8: 2D error +0.0500 (worse)" in text
    assert "inference x1.00" in text


def test_a_report_without_times_is_drawn_over_parameters(protocol, tmp_path):
    for seed in (1, 2):
        stored(protocol.folder, protocol, "fastvit_t8", seed, 0.2 + 0.01 * seed)
    write_report(protocol, tmp_path / "results", timed=False)
    facts = json.loads((tmp_path / "results" / "ablations.json").read_text())
    assert facts["arms"]["fastvit_t8"]["backbone_parameters"] > 3e6
    assert "not timed" in (tmp_path / "results" / "ablations.md").read_text()
    assert (tmp_path / "results" / "ablations.png").stat().st_size > 1000
