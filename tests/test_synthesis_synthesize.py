"""The generator: FreiHAND's layout, labels that agree with the pictures, determinism, resuming."""

import json

import cv2
import numpy as np
import pytest
import torch

from handmesh.assets import load_hand_model
from handmesh.datasets.freihand import FreiHandDataset, mano_parameters
from handmesh.image_folders import is_held_out
from handmesh.model.hand_model import HandModel
from handmesh.synthesis.synthesize import main, synthesize

SHARD, COUNT, SKINS = 6, 10, 2


def render(root, count=COUNT, seed=4, **options):
    done = []
    options = {"skins": SKINS, "shard_size": SHARD, "workers": 1, "split": "evaluation"} | options
    rate = synthesize(root, count, seed, progress=lambda k, n: done.append((k, n)), **options)
    return rate, done


def pictures(root, split="evaluation"):
    folder = root / split
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("synth")
    rate, done = render(root)
    assert rate > 0
    assert done == [(6, 10), (10, 10)]
    return root


def test_layout_is_freihands(rendered):
    names = {path.as_posix() for path in pictures(rendered)}
    assert names == {f"{kind}/{i:08d}.jpg" for kind in ("rgb", "mask", "alpha") for i in range(COUNT)}
    tables = {
        k: np.array(json.loads((rendered / f"evaluation_{k}.json").read_text()))
        for k in ("K", "xyz", "mano", "scale", "verts")
    }
    V = len(load_hand_model().v_template)
    shapes = {"K": (3, 3), "xyz": (21, 3), "mano": (1, 61), "scale": (), "verts": (V, 3)}
    assert {k: table.shape for k, table in tables.items()} == {k: (COUNT, *shape) for k, shape in shapes.items()}
    np.testing.assert_allclose(
        tables["scale"], np.linalg.norm(tables["xyz"][:, 9] - tables["xyz"][:, 10], axis=1), atol=1e-5
    )


def test_labels_pose_the_hand_model_onto_themselves(rendered):
    """FreiHAND's mano row, through the hand model, gives the labelled joints and vertices."""
    labels, meta = np.load(rendered / "evaluation_labels.npz"), np.load(rendered / "evaluation_meta.npz")
    mano = torch.tensor(json.loads((rendered / "evaluation_mano.json").read_text()))[:, 0]
    rotations, betas = (torch.from_numpy(x).float() for x in mano_parameters(mano.double().numpy(), load_hand_model()))
    mesh = HandModel(load_hand_model())(rotations, betas)
    keypoints = (mesh.keypoints - mesh.keypoints[:, :1]).detach().numpy() + meta["translation"][:, None]
    np.testing.assert_allclose(keypoints, labels["xyz"], atol=2e-5)
    vertices = (mesh.vertices - mesh.keypoints[:, :1]).detach().numpy() + meta["translation"][:, None]
    np.testing.assert_allclose(vertices, labels["verts"], atol=2e-5)
    root = np.einsum("nij,nj->ni", labels["K"], labels["xyz"][:, 9])
    np.testing.assert_allclose(mano[:, 58:60], root[:, :2] / root[:, 2:], atol=2e-2)
    focal = labels["K"][:, (0, 1), (0, 1)].mean(1)
    np.testing.assert_allclose(focal / mano[:, 60].numpy(), labels["xyz"][:, 9, 2], atol=1e-4)


def test_pictures_show_the_labelled_hand(rendered):
    """Vertices project onto the alpha picture; the mask lies inside it and holds most of the hand's pixels."""
    import cv2

    labels = np.load(rendered / "evaluation_labels.npz")
    for i in range(COUNT):
        images = [cv2.imread(str(rendered / "evaluation" / k / f"{i:08d}.jpg"), 0) for k in ("mask", "alpha")]
        mask, alpha = (image.astype(int) for image in images)
        assert mask.shape == (224, 224)
        assert (mask <= alpha + 40).all()  # both are JPEG
        seen = np.einsum("ij,nj->ni", labels["K"][i], labels["verts"][i])
        x, y = np.round(seen[:, :2] / seen[:, 2:]).astype(int).T
        inside = (x >= 0) & (x < 224) & (y >= 0) & (y < 224)
        assert inside.mean() > 0.2
        near = cv2.dilate(images[1], np.ones((3, 3), np.uint8))  # rounding may step over the outline
        assert (near[y[inside], x[inside]] > 60).mean() > 0.99
        hull = np.zeros((224, 224), np.uint8)
        cv2.fillConvexPoly(hull, cv2.convexHull(np.stack([x, y], 1).astype(np.int32)), 1)
        assert (mask[cv2.dilate(hull, np.ones((7, 7))) == 0] < 40).all()


def test_meta_describes_every_picture(rendered):
    meta = np.load(rendered / "evaluation_meta.npz")
    assert {len(meta[k]) for k in meta.files} == {COUNT}
    assert set(meta["side"]) == {"right"}
    assert set(meta["view"]) <= {"palm", "back", "side", "end"}
    assert ((meta["skin_tone"] >= 0) & (meta["skin_tone"] <= 1)).all()
    assert np.abs(meta["betas"]).max() <= 2.0
    np.testing.assert_allclose(np.linalg.det(meta["rotations"]), 1.0, atol=1e-4)


def test_an_interrupted_run_resumes_to_the_same_bytes(rendered, tmp_path):
    render(tmp_path, count=7)
    before = pictures(rendered)
    shared = {name: data for name, data in pictures(tmp_path).items() if int(name.stem) < 7}
    assert shared == {name: data for name, data in before.items() if int(name.stem) < 7}
    _, done = render(tmp_path)  # the whole first shard is there, the cut second one is rendered again
    assert done == [(10, 10)]
    assert pictures(tmp_path) == before
    assert render(tmp_path) == (0.0, [])


def test_processes_do_not_change_the_pictures(rendered, tmp_path):
    render(tmp_path, workers=2)
    assert pictures(tmp_path) == pictures(rendered)
    for name in ("labels", "meta"):
        one, two = (np.load(root / f"evaluation_{name}.npz") for root in (rendered, tmp_path))
        for key in one.files:
            np.testing.assert_array_equal(one[key], two[key])


def test_another_seed_is_another_set_and_is_not_mixed_in(rendered, tmp_path):
    with pytest.raises(ValueError, match=r"another run, of \{'seed': \d+\}, not \{'seed': 5\}"):
        render(rendered, seed=5)
    render(tmp_path, count=2, seed=5)
    name = next(iter(pictures(tmp_path)))
    assert pictures(tmp_path)[name] != pictures(rendered)[name]


def test_a_set_grows_with_its_people_and_shrinks_with_its_labels(tmp_path):
    for count in (3, 9, 4):
        render(tmp_path, count=count, skins=None)
        assert json.loads((tmp_path / "evaluation_synthesis.json").read_text())["skins"] == 1
        hands = FreiHandDataset(tmp_path, "evaluation")
        assert (len(hands), hands.files.copies) == (count, 1)
    assert len(pictures(tmp_path)) == 3 * 9
    for number in range(4):
        np.testing.assert_array_equal(
            hands[number].image, cv2.imread(str(tmp_path / "evaluation" / "rgb" / f"{number:08d}.jpg"))[..., ::-1]
        )


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        synthesize(tmp_path, 1, 0, backgrounds=[tmp_path / "nowhere"])
    (tmp_path / "bare").mkdir()
    for workers in (1, 2):  # processes that fail as they start were once replaced for ever
        with pytest.raises(FileNotFoundError, match="no image"):
            synthesize(tmp_path / "set", 1, 0, backgrounds=[tmp_path / "bare"], workers=workers)
    with pytest.raises(ValueError, match="positive"):
        synthesize(tmp_path, 0, 0)
    with pytest.raises(ValueError, match="seed"):
        synthesize(tmp_path, 1, -1)
    for share in (-1.0, 7.0, float("nan")):
        with pytest.raises(ValueError, match="a share"):
            synthesize(tmp_path, 1, 0, second_hand=share)
    with pytest.raises(ValueError, match="workers"):
        synthesize(tmp_path, 1, 0, workers=0)
    assert not list(tmp_path.glob("*_synthesis.json"))


def test_training_hands_stand_before_no_picture_that_is_kept_to_measure_on(tmp_path):
    walls = tmp_path / "walls"
    walls.mkdir()
    name = next(one for one in map("{}.png".format, range(200)) if is_held_out(walls / one))
    cv2.imwrite(str(walls / name), np.full((80, 90, 3), 99, np.uint8))
    with pytest.raises(ValueError, match="kept out of training"):
        render(tmp_path / "set", count=1, split="training", backgrounds=[walls])
    render(tmp_path / "set", count=1, seed=5, backgrounds=[walls])


def test_a_set_that_was_not_rendered_here_is_left_alone(tmp_path):
    (tmp_path / "training_xyz.json").write_text("[]")
    with pytest.raises(ValueError, match="was not rendered here"):
        synthesize(tmp_path, 1, 0, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["training_xyz.json"]


def test_splits_of_a_root_show_different_hands(tmp_path):
    command = [str(tmp_path), "--count", "1", "--workers", "1", "--skins", "1"]
    for split in ("training", "evaluation"):
        main([*command, "--split", split])
    seeds = [
        json.loads((tmp_path / f"{split}_synthesis.json").read_text())["seed"] for split in ("training", "evaluation")
    ]
    assert seeds[0] != seeds[1]
    with pytest.raises(ValueError, match="would show its hands"):
        synthesize(tmp_path, 1, seeds[0], split="evaluation", workers=1)


def test_command_line(tmp_path, capsys):
    main([str(tmp_path), "--count", "1", "--workers", "1", "--skins", "1", "--seed", "3"])
    assert len(pictures(tmp_path, "training")) == 3
    assert not (tmp_path / "training_verts.json").exists()
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "FreiHAND" in capsys.readouterr().out
