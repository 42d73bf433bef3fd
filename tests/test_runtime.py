"""Graphs behind their runtimes: equal answers, and clear words for files that are not what they should be."""

from __future__ import annotations

import hashlib
import json

import graphs
import numpy as np
import onnx
import pytest

from handmesh.runtime import MAX_THREADS, _container_quota, default_threads, load_graph

RUNTIME_TOLERANCE = 1e-5  # float32 sums of 4096 pixels in another order


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    frames = np.random.default_rng(0).integers(0, 50, (3, 64, 64, 3), np.uint8)
    for i, side in enumerate(["right", "left", "right"]):
        frames[i] = graphs.draw_hand(frames[i], (30 + i, 33), 40, side)
    return frames


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_runtimes_agree_and_a_batch_equals_its_singles(stub_folder, crops, threads):
    plain = load_graph(stub_folder / "hand.onnx", "hand")(crop=crops)
    assert {name: array.shape for name, array in plain.items()} == {
        name: (3, *shape) for name, shape in graphs.HAND_OUTPUTS.items()
    }
    for runtime in ("onnxruntime", "openvino"):
        graph = load_graph(stub_folder / "hand.onnx", "hand", runtime=runtime, threads=threads)
        assert graph.metadata == graphs.HAND_DESCRIPTION
        together = graph(crop=crops)
        for i in range(3):
            single = graph(crop=crops[i : i + 1])
            for name, values in plain.items():
                assert together[name].dtype == np.float32
                np.testing.assert_allclose(together[name][i], values[i], atol=RUNTIME_TOLERANCE)
                np.testing.assert_allclose(single[name][0], values[i], atol=RUNTIME_TOLERANCE)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_outputs_outlive_the_next_run(stub_folder, crops, runtime):
    graph = load_graph(stub_folder / "hand.onnx", "hand", runtime=runtime)
    first = graph(crop=crops[:1])
    kept = {name: values.copy() for name, values in first.items()}
    graph(crop=crops[1:2])
    for name, values in first.items():
        np.testing.assert_array_equal(values, kept[name])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "overwritten", "text"])
def test_damaged_files_are_named_with_their_checksum(stub_folder, tmp_path, runtime, damage):
    whole = (stub_folder / "hand.onnx").read_bytes()
    content = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "overwritten": b"\0" * 64 + whole[64:],
        "text": b"no such page\n",
    }[damage]
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken.onnx.*{len(content)} bytes.*{hashlib.sha256(content).hexdigest()}"):
        load_graph(path, "hand", runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_missing_file_is_named(tmp_path, runtime):
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx"):
        load_graph(tmp_path / "gone.onnx", "hand", runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_description_must_be_there_and_fit(stub_folder, tmp_path, runtime):
    with pytest.raises(ValueError, match="kind 'detector', but one of kind 'hand'"):
        load_graph(stub_folder / "detector.onnx", "hand", runtime=runtime)
    for text, words in (("{oops", "not JSON"), (json.dumps([1]), "JSON object"), ("{}", "kind None")):
        path = graphs.build_hand_graph(tmp_path / "odd.onnx", description=text)
        with pytest.raises(ValueError, match=words):
            load_graph(path, "hand", runtime=runtime)


def test_undescribed_network_is_refused(tmp_path):
    import onnx

    model = onnx.load(graphs.build_hand_graph(tmp_path / "bare.onnx"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match='lacks the metadata "handmesh"'):
            load_graph(tmp_path / "bare.onnx", "hand", runtime=runtime)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runtime": "tensorrt"}, "runtime must be one of onnxruntime, openvino, torch"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"precision": "int4"}, "precision must be one of f32, bf16, int8"),
        ({"precision": "bf16"}, "needs runtime='openvino'"),
        ({"precision": "int8", "runtime": "torch"}, "torch computes in f32"),
        ({"precision": "int8"}, "hand.onnx computes in f32, not in int8"),
        ({"device": "gpu"}, "device must be one of cpu, cuda, coreml, directml with onnxruntime"),
        ({"device": "directml"}, "no DmlExecutionProvider for device 'directml', only .*CPUExecutionProvider"),
        ({"device": "npu9", "runtime": "openvino"}, "OpenVINO sees no device 'npu9' here, only .*cpu"),
    ],
)
def test_settings_out_of_range_are_refused(stub_folder, settings, words):
    with pytest.raises(ValueError, match=words):
        load_graph(stub_folder / "hand.onnx", "hand", **settings)


def test_openvino_is_told_precision_and_threads(stub_folder, monkeypatch):
    """By itself it computes in half precision on processors that can."""
    openvino = pytest.importorskip("openvino")
    compile_model, told = openvino.Core.compile_model, []

    def watched(core, model, device, settings):
        told.append((settings["INFERENCE_PRECISION_HINT"], settings["INFERENCE_NUM_THREADS"]))
        return compile_model(core, model, device)

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    for precision in (None, "f32", "bf16"):
        load_graph(stub_folder / "hand.onnx", "hand", runtime="openvino", precision=precision, threads=2)
    assert told == [("f32", 2), ("f32", 2), ("bf16", 2)]


def test_onnxruntime_is_told_the_threads(stub_folder, monkeypatch):
    import onnxruntime

    session, told = onnxruntime.InferenceSession, []

    def watched(path, options, **settings):
        told.append(options.intra_op_num_threads)
        return session(path, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    for threads in (1, 3, None):
        load_graph(stub_folder / "hand.onnx", "hand", threads=threads)
    assert told == [1, 3, default_threads()]


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_device_that_does_not_start_is_an_error_and_not_the_processor(stub_folder, monkeypatch):
    """onnxruntime lists CUDA where its libraries are missing, and then computes elsewhere."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ValueError, match="could not start its CUDAExecutionProvider for device 'cuda'"):
        load_graph(stub_folder / "hand.onnx", "hand", device="cuda")


def test_int8_twins_serve_the_processor_unless_another_precision_is_wanted(tmp_path, monkeypatch):
    entries = {}
    for name, precision in (("a", "f32"), ("a_int8", "int8"), ("b", "f32")):
        description = {"kind": "hand", "input_size": graphs.CROP_SIZE, "precision": precision}
        file = graphs.build_hand_graph(tmp_path / f"{name}.onnx", description=description)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        entries[name] = {"kind": "hand", "file": file.name, "sha256": digest, "precision": precision}
    (tmp_path / "weights.json").write_text(json.dumps(entries))
    monkeypatch.setattr("handmesh.assets.ASSETS", tmp_path)
    monkeypatch.setattr("handmesh.assets.WEIGHTS_REGISTRY", tmp_path / "weights.json")

    def opened(name: str, **settings) -> str:
        return load_graph(name, "hand", **settings).path.stem

    assert opened("a") == opened("a", precision="int8") == opened("a_int8") == "a_int8"
    assert opened("a", precision="f32") == opened("a", runtime="openvino") == "a"
    assert opened("a", runtime="openvino", precision="int8") == "a_int8"
    with monkeypatch.context() as elsewhere:  # no GPU computes faster in int8
        elsewhere.setattr("handmesh.runtime._open_onnxruntime", lambda path, *_: (None, json.dumps(entries[path.stem])))
        assert opened("a", device="cuda") == "a"
        assert opened("a", device="cuda", precision="int8") == "a_int8"
    assert opened("b") == "b"
    with pytest.raises(ValueError, match="'b' have no int8 twin"):
        opened("b", precision="int8")
    with pytest.raises(ValueError, match=r"a_int8\.onnx computes in int8, not in f32"):
        opened("a_int8", precision="f32")


def test_a_run_uses_at_most_the_cores_of_this_process_and_four(monkeypatch):
    monkeypatch.setattr("handmesh.runtime._container_quota", lambda: None)
    for cores, expected in ((1, 1), (3, 3), (64, MAX_THREADS)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_threads() == expected
    monkeypatch.setattr("handmesh.runtime._container_quota", lambda: 2)
    assert default_threads() == 2


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "gibberish"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_is_read_in_either_version(tmp_path, files, cores):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert _container_quota(tmp_path) == cores


def test_missing_number_in_the_description_is_named(tmp_path):
    path = graphs.build_hand_graph(tmp_path / "hand.onnx", description={"kind": "hand", "input_size": "big"})
    graph = load_graph(path, "hand")
    for key in ("input_size", "stride"):
        with pytest.raises(ValueError, match=f'hand.onnx.*number "{key}"'):
            graph.number(key)


@pytest.mark.slow
def test_torch_runtime_answers_like_the_network_itself(stub_folder, tmp_path):
    torch = pytest.importorskip("torch", reason="runtime='torch' needs the train extra")
    from handmesh.model.regressor import HandRegressor, NetworkConfig, save_network

    torch.manual_seed(0)
    network = HandRegressor(NetworkConfig(input_size=64)).eval()
    save_network(network, tmp_path / "net.pt")
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    graph = load_graph(tmp_path / "net.pt", "hand", runtime="torch")
    assert graph.number("input_size") == 64
    answer = graph(crop=crops)
    assert answer.keys() == graphs.HAND_OUTPUTS.keys()
    with torch.no_grad():
        head, vertices, joints = network(torch.from_numpy(crops))
    expected = {"vertices": vertices, "joints": joints, "right": head.right.sigmoid(), "joints_2d": head.joints_2d}
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values.numpy(), atol=RUNTIME_TOLERANCE)
    with pytest.raises(ValueError, match=r"hand\.onnx"):
        load_graph(stub_folder / "hand.onnx", "hand", runtime="torch")


@pytest.mark.slow
def test_torch_asks_for_as_much_presence_as_the_file_says():
    pytest.importorskip("torch", reason="runtime='torch' needs the train extra")
    plain, own = load_graph("fast", "hand", precision="f32"), load_graph("fast", "hand", runtime="torch")
    assert own.metadata == plain.metadata
    assert "presence" in own.metadata


def test_devices_are_known_in_capitals_and_compute_in_the_same_precision(stub_folder, crops):
    plain = load_graph(stub_folder / "hand.onnx", "hand", runtime="openvino", precision="f32")(crop=crops)
    capitals = load_graph(stub_folder / "hand.onnx", "hand", runtime="openvino", precision="f32", device="CPU")
    for name, values in capitals(crop=crops).items():
        np.testing.assert_array_equal(values, plain[name])
    load_graph(stub_folder / "hand.onnx", "hand", device="CPU")


def test_a_file_for_a_newer_runtime_says_so(stub_folder, tmp_path):
    model = onnx.load(stub_folder / "hand.onnx")
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(ValueError, match=r"newer runtime.*\b99\b"):
        load_graph(tmp_path / "newer.onnx", "hand")
