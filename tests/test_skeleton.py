from __future__ import annotations

import numpy as np
import pytest

from handmesh.skeleton import (
    FINGERS,
    FINGERTIPS,
    KEYPOINT_BONES,
    KEYPOINT_PARENTS,
    KEYPOINTS,
    MANO_FINGERTIPS,
    MANO_JOINTS,
    MANO_PARENTS,
    MANO_VERTEX_COUNT,
    MEDIAPIPE,
    MEDIAPIPE_LABELS,
    OPENXR,
    OPENXR_LABELS,
    ORDERS,
    conversion,
    permutation,
)


def test_mano_joints_are_in_manos_order() -> None:
    assert [MANO_JOINTS[i] for i in (0, 1, 4, 7, 10, 13, 15)] == [
        "wrist",
        "index1",
        "middle1",
        "little1",
        "ring1",
        "thumb1",
        "thumb3",
    ]
    assert MANO_PARENTS == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)


def test_keypoints_are_in_freihands_order() -> None:
    assert len(KEYPOINTS) == 21
    assert KEYPOINTS[:5] == ("wrist", "thumb1", "thumb2", "thumb3", "thumb_tip")
    assert [KEYPOINTS[i] for i in (5, 9, 13, 17, 20)] == ["index1", "middle1", "ring1", "little1", "little_tip"]


def test_both_trees_have_the_same_bones() -> None:
    def bones(names: tuple[str, ...], parents: tuple[int, ...]) -> set[tuple[str, str]]:
        return {(names[parent], name) for name, parent in zip(names, parents, strict=True) if parent >= 0}

    tips = {(f"{finger}3", f"{finger}_tip") for finger in FINGERS}
    assert bones(KEYPOINTS, KEYPOINT_PARENTS) == bones(MANO_JOINTS, MANO_PARENTS) | tips
    assert len(KEYPOINT_BONES) == 20


@pytest.mark.parametrize("parents", [MANO_PARENTS, KEYPOINT_PARENTS])
def test_parents_come_before_children(parents: tuple[int, ...]) -> None:
    assert all(parent < child for child, parent in enumerate(parents))


def test_mediapipe_has_freihands_order() -> None:
    assert MEDIAPIPE == KEYPOINTS
    assert list(MEDIAPIPE_LABELS).index("MIDDLE_FINGER_TIP") == 12
    assert list(MEDIAPIPE_LABELS).index("PINKY_MCP") == 17


def test_openxr_holds_every_keypoint_and_five_points_more() -> None:
    assert len(OPENXR) == 26
    assert set(OPENXR) - set(KEYPOINTS) == {"palm", *(f"{finger}_metacarpal" for finger in FINGERS[1:])}
    # Indices of XrHandJointEXT in the OpenXR specification.
    index = {label: i for i, label in enumerate(OPENXR_LABELS)}
    assert (index["THUMB_TIP"], index["INDEX_METACARPAL"], index["MIDDLE_PROXIMAL"], index["LITTLE_TIP"]) == (
        5,
        6,
        12,
        25,
    )


def test_permutation_there_and_back_is_identity() -> None:
    source = (*MANO_JOINTS, *FINGERTIPS)
    there, back = permutation(source, KEYPOINTS), permutation(KEYPOINTS, source)
    assert [source[i] for i in there] == list(KEYPOINTS)
    assert [there[i] for i in back] == list(range(21))


def test_permutation_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="palm"):
        permutation(KEYPOINTS, OPENXR)
    with pytest.raises(ValueError, match="twice"):
        permutation(("a", "a"), ("a",))


def test_fingertip_tables_are_five_vertices_of_mano() -> None:
    for tips in MANO_FINGERTIPS.values():
        assert len(set(tips)) == len(FINGERS)
        assert all(0 <= tip < MANO_VERTEX_COUNT for tip in tips)


def test_fingertip_table_agrees_with_smplx() -> None:
    vertex_ids = pytest.importorskip("smplx.vertex_ids").vertex_ids["mano"]
    names = ("thumb", "index", "middle", "ring", "pinky")
    assert MANO_FINGERTIPS["smplx"] == tuple(vertex_ids[name] for name in names)


def test_middle_fingertip_of_each_convention() -> None:
    assert {name: tips[2] for name, tips in MANO_FINGERTIPS.items()} == {
        "freihand": 443,
        "smplx": 443,
        "manopth": 444,
        "metro": 445,
        "mobrecon": 444,
    }
    assert len(set(MANO_FINGERTIPS.values())) == len(MANO_FINGERTIPS)


@pytest.mark.parametrize("target", ORDERS)
@pytest.mark.parametrize("source", ORDERS)
def test_conversion_keeps_every_named_point(source: str, target: str) -> None:
    if source == "mano16" and target != "mano16":
        with pytest.raises(ValueError, match=r"'mano16' has no \w+_tip"):
            conversion(source, target)
        return
    points = np.random.default_rng(0).normal(size=(len(ORDERS[source]), 3))
    found = np.array(conversion(source, target)) @ points
    assert found.shape == (len(ORDERS[target]), 3)
    for i, name in enumerate(ORDERS[target]):
        if name in ORDERS[source]:
            np.testing.assert_array_equal(found[i], points[ORDERS[source].index(name)])


def test_conversion_estimates_the_palm_on_the_middle_metacarpal() -> None:
    points = np.zeros((21, 3))
    points[KEYPOINTS.index("middle1")] = [0.0, 0.1, 0.0]
    found = dict(zip(OPENXR, np.array(conversion("freihand", "openxr")) @ points, strict=True))
    np.testing.assert_allclose(found["palm"], (found["middle_metacarpal"] + found["middle1"]) / 2)
    np.testing.assert_allclose(found["middle_metacarpal"], [0.0, 0.03, 0.0])


def test_conversion_names_an_unknown_order() -> None:
    with pytest.raises(ValueError, match="unknown order 'leap'; known are freihand, mediapipe"):
        conversion("leap", "freihand")
