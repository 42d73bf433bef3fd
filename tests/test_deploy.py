import json
import os
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from handmesh import assets
from handmesh.model import deploy
from handmesh.model.backbone import ActivationName, Variant
from handmesh.model.deploy import (
    HAND_OUTPUTS,
    export_hand_model,
    export_hand_network,
    fold,
    folded_average,
    forget_weights,
    load_torch_network,
    parity_mm,
    register_weights,
    runtime_parity_mm,
)
from handmesh.model.regressor import (
    HandRegressor,
    NetworkConfig,
    save_network,
    wrist_relative_hand,
)

FOLD_TOLERANCE_MM = 0.01  # float32 round-off through some sixty layers is a hundredth of it
RUNTIME_TOLERANCE_MM = 0.05
FLOAT16_TOLERANCE_MM = 1.0  # of random weights; the published ones are measured when they are made


def seasoned(variant: Variant, size: int = 64, activation: ActivationName = "gelu") -> HandRegressor:
    """A network whose batch norms have seen something, so that folding them is not trivial."""
    torch.manual_seed(0)
    network = HandRegressor(NetworkConfig(variant=variant, input_size=size, activation=activation))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif hasattr(module, "gamma"):
            torch.nn.init.normal_(module.gamma, 0.5, 0.2)  # pyright: ignore[reportArgumentType]
    for parameter in network.parameters():  # the exporter would merge equal arrays, such as untrained biases
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    return network.eval()


@pytest.fixture(scope="module")
def crops():
    return torch.randint(0, 256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("variant", ["t8", pytest.param("sa12", marks=pytest.mark.slow)])
def test_fold_changes_no_vertex(variant, crops):
    network = seasoned(variant)
    folded = fold(network)
    assert parity_mm(network, folded, crops) < FOLD_TOLERANCE_MM
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in network.parameters())
    with pytest.raises(ValueError, match="folded already"):
        fold(folded)


def test_exported_network_equals_torch_and_is_plain(tmp_path, crops):
    folded = fold(seasoned("t8"))
    path = tmp_path / "hand.onnx"
    export_hand_network(folded, path, name="test", presence=0.9, float16=False)
    assert runtime_parity_mm(folded, path, crops) < RUNTIME_TOLERANCE_MM
    assert list(tmp_path.iterdir()) == [path]
    graph = onnx.load(str(path)).graph
    assert not {node.op_type for node in graph.node} & {"BatchNormalization", "If", "Loop"}
    session = onnxruntime.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == list(HAND_OUTPUTS)
    meta = json.loads(session.get_modelmeta().custom_metadata_map["handmesh"])
    assert (meta["kind"], meta["input_size"], meta["crop_scale"], meta["presence"]) == ("hand", 64, 1.6, 0.9)
    alone = session.run(["vertices"], {"crop": crops[:1].numpy()})[0]
    assert abs(alone - session.run(["vertices"], {"crop": crops.numpy()})[0][:1]).max() < 1e-5

    half = tmp_path / "half.onnx"
    export_hand_network(folded, half, name="test")
    assert half.stat().st_size < 0.55 * path.stat().st_size
    assert runtime_parity_mm(folded, half, crops) < FLOAT16_TOLERANCE_MM

    assert parity_mm(folded, load_torch_network(path), crops) < FOLD_TOLERANCE_MM
    assert runtime_parity_mm(load_torch_network(half), half, crops) < RUNTIME_TOLERANCE_MM


def test_a_backbone_of_relu6_is_exported_and_read_as_such(tmp_path, crops):
    folded = fold(seasoned("t8", activation="relu6"))
    path = tmp_path / "hand.onnx"
    export_hand_network(folded, path, name="test", float16=False)
    assert runtime_parity_mm(folded, path, crops) < RUNTIME_TOLERANCE_MM
    nodes = list(onnx.load(str(path)).graph.node)
    convolved = {output for node in nodes if node.op_type == "Conv" for output in node.output}
    assert not [node for node in nodes if node.op_type == "Gelu" and node.input[0] in convolved]
    assert len([node for node in nodes if node.op_type == "Clip" and node.input[0] in convolved]) > 10
    again = load_torch_network(path)
    assert again.config == folded.config
    assert parity_mm(folded, again, crops) < FOLD_TOLERANCE_MM


def test_exported_hand_model_equals_torch(tmp_path, crops):
    network = HandRegressor(NetworkConfig(input_size=64)).eval()
    with torch.no_grad():
        head = network(crops).head
        vertices, joints = wrist_relative_hand(network.hand_model, head.rotations, head.betas)
    export_hand_model(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    found = session.run(None, {"rotations": head.rotations.numpy(), "betas": head.betas.numpy()})
    assert abs(found[0] - vertices.numpy()).max() < 1e-6
    assert abs(found[1] - joints.numpy()).max() < 1e-6


def test_a_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "cut.onnx").write_bytes(b"no graph at all")
    with pytest.raises(ValueError, match=r"cut\.onnx is no ONNX file, or not a whole one"):
        load_torch_network(tmp_path / "cut.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        load_torch_network(tmp_path / "none.onnx")


def test_an_export_does_not_replace_other_graphs(tmp_path, capsys):
    for name in ("detector", "hand_model"):
        with pytest.raises(SystemExit):
            deploy.main([str(tmp_path / "ema.pt"), "--name", name, "--folder", str(tmp_path)])
        assert "choose another" in capsys.readouterr().err


def test_several_checkpoints_become_their_average(tmp_path):
    networks = [seasoned("t8") for _ in range(2)]
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter *= 0.9
    folded = [fold(network).state_dict() for network in networks]
    paths = [tmp_path / "trained.pt", tmp_path / "exported.onnx"]
    save_network(networks[0], paths[0], seen=5)
    export_hand_network(fold(networks[1]), paths[1], name="net", float16=False)
    mean = folded_average([*paths, paths[1]]).state_dict()
    for key, value in folded[0].items():
        wanted = (value + 2 * folded[1][key]) / 3 if value.is_floating_point() else value
        torch.testing.assert_close(mean[key], wanted)
    save_network(HandRegressor(NetworkConfig(input_size=96)), tmp_path / "large.pt")
    with pytest.raises(ValueError, match="only like networks average"):
        folded_average([*paths, tmp_path / "large.pt"])


def test_a_presence_that_is_no_probability_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        deploy.main([str(tmp_path / "ema.pt"), "--presence", "99", "--folder", str(tmp_path)])
    assert "0 to 1" in capsys.readouterr().err


def test_exported_files_alone_do_not_say_what_they_have_seen(tmp_path, capsys):
    with pytest.raises(SystemExit):
        deploy.main([str(tmp_path / "a.onnx"), "--folder", str(tmp_path)])
    assert "give --samples" in capsys.readouterr().err


def test_registry_keeps_other_entries(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"a")
    register_weights(tmp_path, "a", tmp_path / "a.onnx", {"kind": "hand"})
    (tmp_path / "b.onnx").write_bytes(b"b")
    register_weights(tmp_path, "b", tmp_path / "b.onnx", {"kind": "detector"})
    entries = json.loads((tmp_path / "weights.json").read_text())
    assert set(entries) == {"a", "b"}
    assert forget_weights(tmp_path, "b")
    assert not forget_weights(tmp_path, "b")
    assert set(json.loads((tmp_path / "weights.json").read_text())) == {"a"}
    assert not (tmp_path / "b.onnx").exists()
    assert (tmp_path / "a.onnx").exists()
    assert entries["a"]["sha256"] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@pytest.mark.parametrize("failing", range(1, 5))
def test_weights_open_wherever_their_replacement_is_interrupted(tmp_path, monkeypatch, failing):
    folder = tmp_path / "weights"
    monkeypatch.setattr(assets, "ASSETS", folder)
    monkeypatch.setattr(assets, "WEIGHTS_REGISTRY", folder / "weights.json")
    file = tmp_path / "fast.onnx"
    file.write_bytes(b"old")
    register_weights(folder, "fast", file, {"kind": "hand"})
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        replace(source, target)

    file.write_bytes(b"new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            register_weights(folder, "fast", file, {"kind": "hand"})
    assert assets.weights_path("fast").read_bytes() in (b"old", b"new")
    file.write_bytes(b"newer")
    register_weights(folder, "fast", file, {"kind": "hand"})
    assert assets.weights_path("fast").read_bytes() == b"newer"
    assert {path.name for path in folder.iterdir()} == {"fast.onnx", "weights.json"}


def test_a_forgotten_file_is_named_no_more_when_it_goes(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"a")
    register_weights(tmp_path, "a", tmp_path / "a.onnx", {"kind": "hand"})

    def named(path: Path, missing_ok: bool = False) -> None:
        if path.name == "a.onnx":
            assert "a" not in json.loads((tmp_path / "weights.json").read_text())

    monkeypatch.setattr(Path, "unlink", named)
    assert forget_weights(tmp_path, "a")


def test_an_interrupted_export_leaves_the_weights_that_were_there(tmp_path, monkeypatch):
    (tmp_path / "fast.onnx").write_bytes(b"old")
    register_weights(tmp_path, "fast", tmp_path / "fast.onnx", {"kind": "hand"})
    before = (tmp_path / "weights.json").read_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy, "folded_average", lambda *_: HandRegressor(NetworkConfig(input_size=64)))
    monkeypatch.setattr(deploy, "load_network", lambda *_: HandRegressor(NetworkConfig(input_size=64)))
    monkeypatch.setattr(deploy, "export_hand_network", lambda _, path, **__: path.write_bytes(b"new"))
    monkeypatch.setattr(deploy, "export_hand_model", lambda path, _: path.write_bytes(b"new"))
    monkeypatch.setattr(deploy, "parity_mm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy.main(["ema.pt", "--folder", str(tmp_path), "--crops", "1"])
    assert (tmp_path / "fast.onnx").read_bytes() == b"old"
    assert (tmp_path / "weights.json").read_text() == before


@pytest.mark.parametrize("variant", ["t8", "sa12"])
def test_an_exported_network_is_read_back_weight_for_weight(tmp_path, variant):
    folded = fold(seasoned(variant))
    export_hand_network(folded, tmp_path / "net.onnx", name="net", float16=False)
    found, wanted = load_torch_network(tmp_path / "net.onnx").state_dict(), folded.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_a_broken_network_is_not_published(tmp_path, monkeypatch):
    (tmp_path / "fast.onnx").write_bytes(b"old")
    register_weights(tmp_path, "fast", tmp_path / "fast.onnx", {"kind": "hand"})
    before = (tmp_path / "weights.json").read_text()
    monkeypatch.setattr(deploy, "folded_average", lambda *_: HandRegressor(NetworkConfig(input_size=64)))
    monkeypatch.setattr(deploy, "load_network", lambda *_: HandRegressor(NetworkConfig(input_size=64)))
    monkeypatch.setattr(deploy, "export_hand_network", lambda _, path, **__: path.write_bytes(b"new"))
    monkeypatch.setattr(deploy, "export_hand_model", lambda path, _: path.write_bytes(b"new"))
    monkeypatch.setattr(deploy, "runtime_parity_mm", lambda *_: 0.0)
    for broken in (float("nan"), 5.0):
        monkeypatch.setattr(deploy, "parity_mm", lambda *_, value=broken: value)
        with pytest.raises(ValueError, match="nothing was published"):
            deploy.main(["ema.pt", "--folder", str(tmp_path), "--crops", "1"])
    assert (tmp_path / "fast.onnx").read_bytes() == b"old"
    assert (tmp_path / "weights.json").read_text() == before
