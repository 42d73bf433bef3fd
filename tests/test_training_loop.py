import dataclasses
import json
import math
import os
import signal

import cv2
import numpy as np
import pytest
import torch
from mano_imitation import write_mano_pickle
from samples import HandList, posed_hand, write_freihand

from handmesh.assets import load_hand_model
from handmesh.datasets.augment import NO_AUGMENT
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.mixture import Mixture
from handmesh.evaluation.validation import fixed_batch
from handmesh.model.deploy import export_hand_network, fold
from handmesh.model.regressor import HandRegressor, NetworkConfig, load_network, read_checkpoint, save_network
from handmesh.skeleton import MANO_VERTEX_COUNT
from handmesh.training import loop
from handmesh.training.command import _parser, main, open_data
from handmesh.training.config import PRESETS, TrainConfig
from handmesh.training.curves import append_row
from handmesh.training.distillation import Teachers
from handmesh.training.loop import Ema, Trainer, load_initial
from handmesh.training.processes import agree, process_group

TINY = TrainConfig(
    network=NetworkConfig(input_size=64, drop_path=0.1), samples=24, batch_size=4, warmup=4, learning_rate=3e-4
)
HANDS = HandList([posed_hand(seed) for seed in range(4)])


def trainer(folder, config=TINY):
    folder.mkdir(exist_ok=True)
    return Trainer(config, folder, Mixture([HANDS], [0.9]), [], {"synthetic": HANDS})


def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    whole = trainer(tmp_path / "whole")
    assert whole.run()
    assert not trainer(tmp_path / "parts").run(minutes=0.0)  # stops after its first step
    parts = trainer(tmp_path / "parts")
    assert parts.step == 1
    assert parts.run()
    for (key, value), other in zip(
        whole.network.state_dict().items(), parts.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")
    for key, value in whole.ema.state.items():
        assert value.equal(parts.ema.state[key]), key
    assert (tmp_path / "whole" / "synthetic.csv").read_text().count("\n") == 2
    ema = load_network(tmp_path / "whole" / "ema.pt")
    for key, value in load_network(tmp_path / "whole" / "last.pt").state_dict().items():
        assert value.equal(ema.state_dict()[key]), key
    assert read_checkpoint(tmp_path / "whole" / "last.pt")["seen"] == 24
    (tmp_path / "whole" / "ema.pt").unlink()
    assert trainer(tmp_path / "whole").run()  # as if it had been stopped before its last measurement
    assert (tmp_path / "whole" / "synthetic.csv").read_text().count("\n") == 2
    for key, value in load_network(tmp_path / "whole" / "ema.pt").state_dict().items():
        assert value.equal(ema.state_dict()[key]), key
    drawn = cv2.imread(str(tmp_path / "whole" / "overlays" / "synthetic_000000024.jpg"))
    assert drawn.shape == (192, 8 * 192, 3)  # four hands, each labelled and predicted
    assert (tmp_path / "whole" / "curves.png").is_file()


def test_a_run_that_goes_on_otherwise_says_so(tmp_path, caplog):
    trainer(tmp_path).run(minutes=0.0)
    caplog.clear()
    trainer(tmp_path)
    assert not caplog.messages
    trainer(tmp_path, dataclasses.replace(TINY, samples=32, augment=NO_AUGMENT))
    said = "\n".join(caplog.messages)
    assert "another samples: 32 instead of 24" in said
    assert "another augment" in said
    Trainer(TINY, tmp_path, Mixture([HandList([posed_hand(9)])], [0.9]), [], {})
    assert "another hands: [1] instead of [4]" in caplog.messages[-1]


def test_what_was_measured_after_the_checkpoint_is_forgotten_at_a_resume(tmp_path):
    trainer(tmp_path).run(minutes=0.0)  # a checkpoint and a measurement after 4 samples
    before = (tmp_path / "synthetic.csv").read_bytes()
    append_row(tmp_path / "synthetic.csv", {"seen": 20, "2d": 0.5})
    trainer(tmp_path)
    assert (tmp_path / "synthetic.csv").read_bytes() == before


def test_samples_seen_are_written_whole(tmp_path):
    for seen in (999_936, 1_048_576, 26_047_744):
        append_row(tmp_path / "log.csv", {"seen": seen, "2d": 0.123456789})
    rows = (tmp_path / "log.csv").read_text().split()
    assert rows == ["seen,2d", "999936,0.123457", "1048576,0.123457", "26047744,0.123457"]


def test_resume_refuses_another_batch_size(tmp_path):
    trainer(tmp_path).run(minutes=0.0)
    with pytest.raises(ValueError, match="samples a step"):
        trainer(tmp_path, dataclasses.replace(TINY, batch_size=8))
    stored = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save({**stored, "world": 2}, tmp_path / "last.pt")  # of half the batch each: other crops
    with pytest.raises(ValueError, match="by 2 processes, this run has 4 by 1"):
        trainer(tmp_path)


def test_a_log_keeps_values_under_their_names_when_a_resumed_run_measures_more(tmp_path):
    log = tmp_path / "log.csv"
    for row in ({"seen": 1, "loss": 2.0}, {"seen": 2, "teacher": 0.5, "loss": 1.0}, {"seen": 3, "loss": 0.25}):
        append_row(log, row)
    assert log.read_text().split() == ["seen,loss,teacher", "1,2,nan", "2,1,0.5", "3,0.25,nan"]


def test_the_average_follows_at_once_at_first_and_slowly_later():
    network = HandRegressor(TINY.network)
    ema, name = Ema(network, 0.99), "backbone.stem.0.conv_kxk.0.conv.weight"
    network.load_state_dict({key: torch.zeros_like(value) for key, value in network.state_dict().items()})
    ema.state[name].fill_(1.0)
    ema.update(network, 0)
    assert ema.state[name].mean().item() == pytest.approx(0.1)
    ema.state[name].fill_(1.0)
    ema.update(network, 100_000)
    assert ema.state[name].mean().item() == pytest.approx(0.99)


def test_a_step_has_the_rate_of_its_time_and_a_limited_gradient(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, clip_norm=1e-3)
    run, rates = trainer(tmp_path, config), []
    step = torch.optim.AdamW.step

    def watched(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        norm = torch.stack([p.grad.norm() for p in run.network.parameters() if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-2)
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run.run()
    assert rates == pytest.approx([config.rate_at(4 * number) for number in range(6)])
    assert len(set(rates)) > 2


def test_only_kernels_decay(tmp_path):
    decayed, plain = trainer(tmp_path).optimizer.param_groups
    assert decayed["weight_decay"] == TINY.weight_decay > 0 == plain["weight_decay"]
    assert min(p.ndim for p in decayed["params"]) > 1
    assert sum(p.ndim == 1 for p in plain["params"]) > 50


def test_ctrl_c_saves_before_it_ends_the_run(tmp_path, monkeypatch):
    write_freihand(tmp_path / "data", 4)
    before = signal.getsignal(signal.SIGINT)
    made = Trainer._train_step

    def interrupted(self, batch):
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, None)
        return made(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    options = ["--preset", "smoke", "--freihand", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    with pytest.raises(KeyboardInterrupt):
        main(options)
    stored = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert stored["step"] == 1
    assert signal.getsignal(signal.SIGINT) == before


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_is_named(tmp_path):
    resource = pytest.importorskip("resource")  # which Windows lacks
    trainer(tmp_path).run(minutes=0.0)
    before = (tmp_path / "last.pt").read_bytes()
    files = sorted(path.name for path in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = trainer(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk, a write that the system refuses
    try:
        with pytest.raises(OSError, match=r"File too large: make room and go on; .*last\.pt"):
            run.run(minutes=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert trainer(tmp_path).step == 1


def test_a_torn_row_of_a_log_is_dropped(tmp_path):
    log = tmp_path / "log.csv"
    for row in ({"seen": 1, "loss": 2.0}, {"seen": 2, "loss": 1.0}):
        append_row(log, row)
    for torn in ("3,0.", "3"):
        with log.open("a") as file:
            file.write(torn)  # a full disk, a power cut
        append_row(log, {"seen": 4, "loss": 0.5})
        assert log.read_text().split() == ["seen,loss", "1,2", "2,1", "4,0.5"]
        log.write_text("seen,loss\n1,2\n2,1\n")


def test_resume_says_what_it_does_not_do(tmp_path, caplog):
    trainer(tmp_path).run()
    with pytest.raises(ValueError, match="has seen 24 samples already, more than the 8 of this run"):
        trainer(tmp_path, dataclasses.replace(TINY, samples=8))
    caplog.set_level("INFO")
    Trainer(TINY, tmp_path, Mixture([HANDS], [0.9]), [], {}, initial=[tmp_path / "nowhere.pt"])
    assert "not from --init" in "\n".join(caplog.messages)
    caplog.clear()
    teachers = Teachers([fold(HandRegressor(TINY.network))])
    Trainer(TINY, tmp_path, Mixture([HANDS], [0.9]), [], {}, teachers=teachers)
    assert "another teachers: 1 instead of 0" in "\n".join(caplog.messages)


def test_resume_refuses_another_network_and_needs_no_start(tmp_path):
    trainer(tmp_path).run(minutes=0.0)
    for change in ({"activation": "relu6"}, {"input_size": 96}):
        network = dataclasses.replace(TINY.network, **change)
        with pytest.raises(ValueError, match="resume with the same"):
            trainer(tmp_path, dataclasses.replace(TINY, network=network))
    moved = [tmp_path / "moved.pt"]
    assert Trainer(TINY, tmp_path, Mixture([HANDS], [0.9]), [], {}, initial=moved).step == 1


def test_starts_that_do_not_fit_or_are_not_whole_are_named(tmp_path):
    t8, t12 = (HandRegressor(NetworkConfig(variant=variant, input_size=64)) for variant in ("t8", "t12"))
    save_network(t12, tmp_path / "t12.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "t12.pt").read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"the network of .*t12\.pt does not fit .*variant='t8'"):
        load_initial(t8, tmp_path / "t12.pt")
    with pytest.raises(ValueError, match=r"cut\.pt is no checkpoint, or not a whole one"):
        load_initial(t8, tmp_path / "cut.pt")


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_weights_of_the_open_hand_start_a_network_of_mano_and_what_changes_is_said(tmp_path, caplog, suffix):
    start = tmp_path / f"open{suffix}"
    network = HandRegressor(NetworkConfig(input_size=64, activation="relu6"))
    for parameter in network.parameters():  # zeros are stored once, whatever their names
        torch.nn.init.normal_(parameter, std=0.05)
    if suffix == ".pt":
        save_network(network, start)
    else:
        export_hand_network(fold(network), start, name="open", float16=False)
    mano = load_hand_model(write_mano_pickle(tmp_path / "MANO_RIGHT.pkl"))
    with caplog.at_level("INFO"):
        begun = Trainer(TINY, tmp_path / "run", Mixture([HANDS], [0.9]), [], {}, initial=[start], hand_model=mano)
    weight = begun.network.head.maps.bias
    torch.testing.assert_close(weight, network.head.maps.bias)
    assert begun.network.hand_model.vertex_count == MANO_VERTEX_COUNT
    assert "activation='relu6'" in caplog.text


def test_rate_warms_up_holds_and_ends_at_zero():
    config = TrainConfig(samples=1000, warmup=100, decay=0.5, learning_rate=2.0)
    assert config.rate_at(0) == pytest.approx(0.02)
    assert config.rate_at(300) == 2.0
    assert config.rate_at(750) == pytest.approx(1.0)
    assert config.rate_at(1000) == 0.0


def test_command_line_trains_on_a_folder(tmp_path):
    write_freihand(tmp_path / "set", 3)
    run = tmp_path / "run"
    main(["--preset", "smoke", "--out", str(run), "--synthetic", str(tmp_path / "set"), "--samples", "32"])
    facts = json.loads((run / "run.json").read_text())
    assert facts["config"]["samples"] == 32
    assert (run / "last.pt").is_file()
    with pytest.raises(ValueError, match="resume with the same options"):
        main(["--preset", "smoke", "--out", str(run), "--synthetic", str(tmp_path / "set"), "--size", "96"])
    assert json.loads((run / "run.json").read_text()) == facts  # says what trained, not what was refused
    assert set(PRESETS) >= {"fast", "accurate", "smoke"}


def test_rendered_sets_are_drawn_from_together(tmp_path):
    for name, count in (("a", 3), ("b", 5)):
        write_freihand(tmp_path / name, count)
    run = tmp_path / "run"
    data = ["--out", str(run), "--synthetic", str(tmp_path / "a"), str(tmp_path / "b")]
    main(["--preset", "smoke", *data, "--samples", "16"])
    recipe = torch.load(run / "last.pt", weights_only=True)["recipe"]
    assert recipe["hands"] == [8]
    joined = open_data(_parser().parse_args(data), PRESETS["smoke"]).mixture.datasets[0]
    for index, (name, row) in enumerate([("a", 0), ("a", 1), ("a", 2), *(("b", row) for row in range(5))]):
        np.testing.assert_array_equal(joined[index].joints_2d, FreiHandDataset(tmp_path / name)[row].joints_2d)


def test_a_run_of_no_step_and_a_validation_of_no_hand_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no hand to measure on"):
        fixed_batch(HandList([]), 64)
    monkeypatch.setattr("handmesh.training.loop.dist.is_initialized", lambda: True)
    monkeypatch.setattr("handmesh.training.loop.dist.get_rank", lambda: 0)
    monkeypatch.setattr("handmesh.training.loop.dist.get_world_size", lambda: 8)
    with pytest.raises(ValueError, match="24 samples are less than one step of 4 by 8"):
        trainer(tmp_path)


def test_command_line_needs_data(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
    assert "nothing to train on" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--synthetic", "set", "--distorted", "photos"])
    assert "--distorted names folders of --photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", math.inf), ("epochs", math.nan), ("seed", -1), ("learning_rate", math.inf), ("samples", -5)],
)
def test_numbers_that_are_none_are_named(field, value):
    with pytest.raises(ValueError, match=field.replace("learning_", "")):
        dataclasses.replace(TINY, **{field: value})


def test_loader_processes_leave_it_to_the_first_how_a_run_ends(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(loop, "DataLoader", lambda *_, **options: given.update(options) or [])
    assert list(trainer(tmp_path)._batches()) == []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        given["worker_init_fn"](0)
        for number in before:
            os.kill(os.getpid(), number)  # as whoever stops a run does to all its processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_training_learns_four_hands_by_heart(tmp_path):
    config = dataclasses.replace(
        TINY,
        network=NetworkConfig(input_size=64),
        augment=NO_AUGMENT,
        samples=640,
        batch_size=8,
        warmup=80,
        learning_rate=1e-3,
        ema_decay=0.9,
    )
    trainer(tmp_path, config).run()
    rows = np.genfromtxt(tmp_path / "synthetic.csv", delimiter=",", names=True)
    assert float(np.atleast_1d(rows["2d"])[-1]) < 0.08
    assert float(np.atleast_1d(rows["pa_mpjpe_mm"])[-1]) < 8.0


def test_processes_stop_and_save_at_the_same_step_whatever_their_clocks_say(monkeypatch):
    cpu = torch.device("cpu")
    assert agree(10, cpu, True, False) == (True, False)  # alone, it is its own wish
    monkeypatch.setattr("handmesh.training.processes.dist.is_initialized", lambda: True)
    first = torch.tensor([0.0, 1.0])
    monkeypatch.setattr("handmesh.training.processes.dist.broadcast", lambda flags, _: flags.copy_(first))
    assert agree(10, cpu, True, False) == (False, True)  # the first process's word counts, not this one's own
    assert agree(11, cpu, True, True) == (False, False)


def test_what_trains_on_the_processor_joins_without_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with process_group(gpu=False) as device:
        assert device == torch.device("cpu")
