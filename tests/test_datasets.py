import dataclasses
import json

import cv2
import numpy as np
import pytest
from samples import HandList, posed_hand, write_freihand

from handmesh.datasets.augment import NO_AUGMENT, ImagePool
from handmesh.datasets.freihand import FreiHandDataset
from handmesh.datasets.mixture import BatchStream, Mixture
from handmesh.datasets.photos import PhotoDataset
from handmesh.image_folders import load_images


def test_freihand_reads_what_was_written(tmp_path):
    write_freihand(tmp_path, 3)
    dataset = FreiHandDataset(tmp_path)
    assert len(dataset) == 3
    for number in range(3):
        expected, found = posed_hand(number), dataset[number]
        np.testing.assert_allclose(found.joints_2d, expected.joints_2d, atol=1e-3)
        assert expected.joints is not None
        assert found.joints is not None
        np.testing.assert_allclose(found.joints, expected.joints, atol=1e-6)
        assert np.abs(found.image.astype(int) - expected.image).mean() < 4  # JPEG


def test_freihand_counts_background_copies(tmp_path):
    write_freihand(tmp_path, 2)
    for number in range(2):
        source = tmp_path / "training" / "rgb" / f"{number:08d}.jpg"
        (tmp_path / "training" / "rgb" / f"{number + 2:08d}.jpg").write_bytes(source.read_bytes())
    dataset = FreiHandDataset(tmp_path)
    assert len(dataset) == 4
    np.testing.assert_array_equal(dataset[3].joints_2d, dataset[1].joints_2d)


def test_freihand_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="training/rgb"):
        FreiHandDataset(tmp_path)
    write_freihand(tmp_path, 2)
    (tmp_path / "training" / "rgb" / "00000001.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="00000001"):
        FreiHandDataset(tmp_path)[1]
    xyz = json.loads((tmp_path / "training_xyz.json").read_text())
    xyz[1][4][2] = float("nan")
    (tmp_path / "training_xyz.json").write_text(json.dumps(xyz))
    with pytest.raises(ValueError, match=r"\[1\] are not finite"):
        FreiHandDataset(tmp_path)
    (tmp_path / "training_K.json").unlink()
    with pytest.raises(FileNotFoundError, match="training_K"):
        FreiHandDataset(tmp_path)


def test_parameters_of_a_part_of_the_hands_are_refused(tmp_path):
    write_freihand(tmp_path, 2)
    np.savez(tmp_path / "training_meta.npz", rotations=np.tile(np.eye(3), (1, 16, 1, 1)), betas=np.zeros((1, 10)))
    with pytest.raises(ValueError, match="fewer hands than the set"):
        FreiHandDataset(tmp_path)


def write_photo(folder, spread=0.01, size=(600, 400)):
    folder.mkdir()
    points = np.stack([np.linspace(300, 420, 21), np.linspace(100, 330, 21)], 1)
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(x), round(y)), 4, (255, 255, 255), -1)
    cv2.imwrite(str(folder / "a.png"), image)
    hand = {"side": "left", "kp2d": points.tolist(), "kp3d": np.ones((21, 3)).tolist(), "spread": spread}
    (folder / "labels.json").write_text(json.dumps({"a.png": {"size": size, "hands": [hand]}}))


def test_photo_region_keeps_keypoints_on_their_pixels(tmp_path):
    write_photo(tmp_path / "set")
    (sample,) = list(PhotoDataset([tmp_path / "set"]))
    assert max(sample.image.shape[:2]) <= 320
    for x, y in sample.joints_2d:
        assert sample.image[round(y), round(x)].min() > 150
    assert sample.side == "left"
    assert sample.trust_2d == 1.0
    assert sample.joints is not None
    assert np.abs(sample.joints[0]).max() == 0.0


def test_photo_labels_are_trusted_by_their_spread(tmp_path):
    write_photo(tmp_path / "good", 0.035)
    write_photo(tmp_path / "bad", 0.06)
    assert len(PhotoDataset([tmp_path / "bad"])) == 0
    (sample,) = list(PhotoDataset([tmp_path / "good"], distorted=frozenset({"good"})))
    assert sample.trust_2d == pytest.approx(0.5)
    assert sample.joints is None
    assert sample.stretched
    assert sample.side_known
    with pytest.raises(ValueError, match="no photo folder is called goood"):
        PhotoDataset([tmp_path / "good"], distorted=frozenset({"goood"}))
    with pytest.raises(FileNotFoundError, match=r"labels\.json"):
        PhotoDataset([tmp_path])


def test_a_side_that_the_labellers_views_dispute_is_not_known(tmp_path):
    for votes, side_votes, known in ((6, 6, True), (6, 5, True), (6, 4, False), (3, 3, False)):
        folder = tmp_path / f"{votes}_{side_votes}"
        write_photo(folder)
        labels = json.loads((folder / "labels.json").read_text())
        labels["a.png"]["hands"][0] |= {"votes": votes, "side_votes": side_votes}
        (folder / "labels.json").write_text(json.dumps(labels))
        assert PhotoDataset([folder])[0].side_known == known


def test_labels_say_whose_spots_they_name_and_only_ours_teach_3d(tmp_path):
    write_photo(tmp_path / "set")
    file = tmp_path / "set" / "labels.json"
    labels = json.loads(file.read_text())
    found = {}
    for convention in (None, "mediapipe", "freihand", "openpose"):
        if convention is not None:
            labels["a.png"]["hands"][0]["convention"] = convention
        file.write_text(json.dumps(labels))
        if convention == "openpose":
            with pytest.raises(ValueError, match="one of freihand, mediapipe, not 'openpose'"):
                PhotoDataset([tmp_path / "set"])
        else:
            (sample,) = list(PhotoDataset([tmp_path / "set"]))
            found[convention] = sample.convention, sample.trust_3d
    assert found == {None: ("mediapipe", 0.0), "mediapipe": ("mediapipe", 0.0), "freihand": ("freihand", 1.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spread": ...}, r"a\.png lacks spread"),
        ({"votes": 6}, "lacks side_votes"),
        ({"side": "Left"}, "of side left or right, not 'Left'"),
        ({"kp2d": [[0.0, 0.0]] * 20}, r"kp2d must be \(21, 2\) finite numbers"),
        ({"kp2d": [[float("nan"), 0.0]] * 21}, "kp2d must be"),
        ({"kp2d": [[9000.0, 9000.0 + i] for i in range(21)]}, r"a\.png: .*outside the picture"),
        ({"kp2d": [[-90.0, 20.0 + i] for i in range(21)]}, r"a\.png: .*outside the picture"),
        ({"kp2d": [[9.0, 9.0]] * 21}, r"a\.png: all keypoints .* in one place"),
        ({"kp3d": None}, "kp3d must be"),
        ({"spread": "small"}, "spread must be finite numbers"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, change, message):
    write_photo(tmp_path / "set")
    file = tmp_path / "set" / "labels.json"
    labels = json.loads(file.read_text())
    hand = labels["a.png"]["hands"][0] | change
    labels["a.png"]["hands"][0] = {key: value for key, value in hand.items() if value is not ...}
    file.write_text(json.dumps(labels))
    with pytest.raises(ValueError, match=message):
        PhotoDataset([tmp_path / "set"])


@pytest.mark.parametrize("content", ["[]", '{"a.png": {}}', '{"a.png": {"ha'])
def test_files_of_labels_that_are_none_are_named(tmp_path, content):
    write_photo(tmp_path / "set")
    (tmp_path / "set" / "labels.json").write_text(content)
    with pytest.raises(ValueError, match=r"labels\.json"):
        PhotoDataset([tmp_path / "set"])


def stream(seed=1, rank=0):
    mixture = Mixture([HandList([posed_hand(0), posed_hand(1)])], [0.8])
    return BatchStream(
        mixture, ImagePool([]), batch_size=16, size=64, augment=NO_AUGMENT, seed=seed, rank=rank, steps=4
    )


def test_batches_depend_on_seed_rank_and_step_alone():
    first = stream()[2]
    for found, expected in zip(stream()[2], first, strict=True):
        assert found.equal(expected)
    for other in (stream()[1], stream(seed=2)[2], stream(rank=1)[2]):
        assert not other.crops.equal(first.crops)
    assert 0 < first.presence.mean() < 1


def test_shares_are_of_all_crops_and_the_rest_has_no_hand():
    right, unknown = posed_hand(0), dataclasses.replace(posed_hand(1), side_known=False)
    mixture = Mixture([HandList([right]), HandList([unknown])], [0.5, 0.2])
    rows = BatchStream(mixture, ImagePool([]), batch_size=200, size=64, augment=NO_AUGMENT, seed=0, rank=0, steps=1)[0]
    assert rows.presence.mean() == pytest.approx(0.7, abs=0.08)
    assert (rows.weight_right > 0).float().mean() == pytest.approx(0.5, abs=0.08)


def test_mixture_refuses_shares_that_do_not_fit():
    hands = HandList([posed_hand(0)])
    with pytest.raises(ValueError, match="shares"):
        Mixture([hands], [0.7, 0.3])
    with pytest.raises(ValueError, match="shares"):
        Mixture([hands], [1.2])
    with pytest.raises(ValueError, match="empty"):
        Mixture([HandList()], [0.5])


def test_images_of_folders_are_shrunk_and_give_patches(tmp_path):
    wide = np.zeros((100, 1000, 3), np.uint8)
    wide[..., 0] = 255  # blue, as OpenCV writes
    (tmp_path / "deep").mkdir()
    cv2.imwrite(str(tmp_path / "deep" / "wide.PNG"), wide)
    (image,) = load_images([tmp_path], 400)
    assert image.shape == (40, 400, 3)
    assert image[0, 0].tolist() == [0, 0, 255]
    assert ImagePool([image]).patch(np.random.default_rng(0), 48).shape == (48, 48, 3)


def test_folders_without_images_and_images_that_cannot_be_read_are_named(tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_images([tmp_path / "nowhere"], 400)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image \(.*empty"):
        load_images([tmp_path / "empty"], 400)
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image below .* can be read"):
        load_images([tmp_path], 400)
    caplog.clear()
    for name, side in (("c.png", 70), ("small.png", 10)):
        cv2.imwrite(str(tmp_path / name), np.zeros((side, side, 3), np.uint8))
    assert len(load_images([tmp_path], 400, smallest_px=64)) == 1
    assert caplog.messages == [f"2 images below {tmp_path} cannot be read, such as {tmp_path / 'a.jpg'}"]
