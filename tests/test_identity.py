"""Which hand is which, in pictures without pixels: who a hand belongs to, who comes back, who was exchanged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hands import sighting, sphere_hand

from handmesh.handedness import SideBelief, for_side
from handmesh.identity import Rivalries, View, new_hands, recall, trust, undo_exchange
from handmesh.records import Side, Sighting, box_of_points, other_side
from handmesh.smoothing import Smoothing
from handmesh.track import Track

FRAME_S = 1 / 30.0
SIZE = 100.0
HAND_MESH = sphere_hand(subdivisions=0)
HAND = sighting(HAND_MESH)
SPOTS = np.random.default_rng(0).uniform(-0.5, 0.5, (21, 2))
SPOTS[:2] = [[-0.5, -0.5], [0.5, 0.5]]  # they fill a square


def probability(log_odds: float) -> float:
    return float(1.0 / (1.0 + np.exp(-log_odds)))


def scores(right: float) -> dict[Side, float]:
    """What a network says of both sides whose log odds of a right hand are these."""
    return {"right": probability(right), "left": probability(-right)}


def at(x: float, y: float = 0.0, size: float = SIZE, right: float = 0.0, side: Side = "right") -> Sighting:
    """A hand around a place of the picture."""
    side_score = probability(for_side(side, right))
    return Sighting(side, HAND.posed, SPOTS * size + [x, y], 0.9, side_score)


def view(x: float, y: float = 0.0, size: float = SIZE, *, right: float = 0.0, track: Track | None = None) -> View:
    """A crop that was run as both sides and shows a hand there."""
    answers: dict[Side, Sighting] = {side: at(x, y, size, right, side) for side in ("right", "left")}
    return View(box_of_points(answers["right"].joints_2d), ("right", "left"), track, answers)


def track(number: int, x: float, side: Side = "right", *, sure: float = 4.0, missed_s: float = 0.0) -> Track:
    """A hand that has long been followed and is expected there."""
    belief = SideBelief(scores(for_side(side, sure)), flip_after=20)
    for _ in range(30):
        belief.hear(scores(for_side(side, sure)), 1.0)
    known = Track(number, belief, Smoothing(), center=np.array([x, 0.0]), size=SIZE, seen_apart=30)
    known.missed_s = missed_s
    return known


# ------------------------------------------------------------------------------------------------------ coming back


def test_a_hand_that_shrank_is_as_unlike_the_lost_one_as_one_that_grew():
    lost = track(0, 200, missed_s=0.1)
    usual, smaller, larger = (lost.likeness(at(200, size=size), 0.0) for size in (SIZE, SIZE / 3, 3 * SIZE))
    assert smaller == pytest.approx(larger)
    assert smaller < usual - 0.5


def recalled(found: View, *lost: Track) -> Track | None:
    recall([found], lost)
    return found.track


def test_of_lost_hands_the_one_of_the_side_comes_back_and_not_the_nearer_one():
    right, left = track(0, 200, "right", missed_s=1.0), track(1, 300, "left", missed_s=1.0)
    assert recalled(view(190, right=-4.0), right, left) is left


def test_of_lost_hands_of_one_side_the_nearer_one_comes_back():
    lost = track(0, 400, missed_s=1.0), track(1, 200, missed_s=1.0)
    assert recalled(view(210, right=4.0), *lost) is lost[1]
    assert recalled(view(390, right=4.0), *lost) is lost[0]


@pytest.mark.parametrize(("missed_s", "comes_back"), [(0.1, False), (3.0, True)])
def test_a_lost_hand_comes_back_no_farther_than_it_can_have_moved(missed_s, comes_back):
    assert (recalled(view(600), track(0, 200, missed_s=missed_s)) is not None) == comes_back


@pytest.mark.parametrize(("missed_s", "comes_back"), [(0.1, False), (1.0, True)])
def test_a_lost_hand_does_not_grow_to_four_times_its_size_at_once(missed_s, comes_back):
    assert (recalled(view(200, size=4 * SIZE), track(0, 200, missed_s=missed_s)) is not None) == comes_back


# ----------------------------------------------------------------------------------------------------------- new ones


@pytest.mark.parametrize(
    ("x", "size", "is_new"),
    [(20, SIZE, False), (45, SIZE, True), (30, 0.4 * SIZE, False), (50, 0.4 * SIZE, True)],
    ids=["nearly there", "beside it", "a part of it", "a small hand that reaches over its edge"],
)
def test_a_hand_found_near_a_known_one_is_that_one_a_part_of_it_or_new(x, size, is_new):
    assert bool(new_hands([view(x, size=size)], [view(0)])) == is_new


def test_a_hand_found_twice_is_new_once():
    first, again = view(0), view(10)
    assert new_hands([first, again], []) == [first]


def test_of_a_hand_and_a_part_of_it_the_hand_is_new():
    part, whole = view(0, size=40), view(0)
    assert new_hands([part, whole], []) == [whole]


def test_nothing_is_believed_of_a_hand_with_a_lost_one_in_its_crop():
    seen = view(0, track=track(0, 0))
    assert trust(seen, [seen], []) == trust(seen, [seen], [track(1, 150)]) == 1.0
    assert trust(seen, [seen], [track(1, 30)]) == 0.0


# ------------------------------------------------------------------------------------- two tracks, one hand in sight


@pytest.mark.parametrize("right", [2.0, -2.0])
def test_a_hand_between_two_tracks_is_the_one_of_its_side(right):
    a, b = track(0, 160, "right"), track(1, 240, "left")
    views = view(200, right=right, track=a), view(200, right=right, track=b)
    (loser,) = Rivalries().contest(*views, 0.0)
    assert loser.owner.side == ("left" if right > 0 else "right")


@pytest.mark.parametrize(("sure", "winner"), [(4.0, 1), (0.3, 0)], ids=["settled", "unsettled"])
def test_where_a_settled_side_is_opposed_it_is_the_other_hand_that_has_come_there(sure, winner):
    a, b = track(0, 200, "right", sure=sure), track(1, 350, "left")
    views = view(200, right=-4.0, track=a), view(200, right=-4.0, track=b)
    (loser,) = Rivalries().contest(*views, 0.0)
    (seen,) = (one for one in views if one is not loser)
    assert seen.owner.id == winner
    assert loser.owner.id == 1 - winner


@pytest.mark.parametrize(("pause_s", "winner"), [(FRAME_S, 0), (0.5, 1)])
def test_a_hand_is_not_passed_to_and_fro_between_two_tracks(pause_s, winner):
    a, b, rivalries = track(0, 200), track(1, 280), Rivalries()
    (loser,) = rivalries.contest(view(200, track=a), view(200, track=b), 0.0)
    assert loser.owner is b
    (loser,) = rivalries.contest(view(255, track=a), view(255, track=b), pause_s)  # nearer to the other one
    assert loser.owner.id == 1 - winner


@pytest.mark.parametrize(
    ("right", "age", "loser"), [(0.0, 0, 1), (-2.0, 0, 0), (-2.0, 10, 1)], ids=["younger", "unlikely", "settled"]
)
def test_of_two_new_tracks_on_one_hand_the_younger_ends_unless_the_elders_side_is_unlikely(right, age, loser):
    elder, younger = track(3, 200, "right"), track(8, 200, "left")
    elder.seen_apart, younger.seen_apart = age, 0
    views = view(200, right=right, track=elder), view(200, right=right, track=younger)
    for first, second in (views, views[::-1]):
        assert Rivalries().contest(first, second, 0.0) == [views[loser]]


# ------------------------------------------------------------------------------------ two tracks, two entangled hands


@pytest.mark.parametrize(("expected_x", "believed"), [(300, False), (275, True)])
def test_an_entangled_hand_that_jumps_is_not_believed_and_the_other_one_is(expected_x, believed):
    still, jumping = track(0, 200), track(1, expected_x)
    views = view(200, track=still), view(245, track=jumping)
    for order in (views, views[::-1]):
        assert Rivalries().contest(*order, 0.0) == ([] if believed else [views[1]])
    assert [one.owner for one in views] == [still, jumping]


def test_entangled_hands_in_each_others_crops_go_back_to_their_tracks():
    a, b = track(0, 200), track(1, 250)
    views = view(250, track=a), view(200, track=b)
    assert Rivalries().contest(*views, 0.0) == []
    assert [one.owner for one in views] == [b, a]


def test_entangled_hands_that_fit_both_tracks_about_as_well_stay_where_they_are():
    a, b = track(0, 200), track(1, 250)
    views = view(222, 8, track=a), view(218, -12, track=b)
    assert Rivalries().contest(*views, 0.0) == []
    assert [one.owner for one in views] == [a, b]


# ------------------------------------------------------------------------------------------- what was exchanged


def exchanged_after(a: Track, b: Track, log_odds: float, *, since_s: float = 0.1) -> int | None:
    """After how many frames, if any, two tracks that hear of the other side so surely change places."""
    a.entangled_s = b.entangled_s = since_s
    numbers = a.id, b.id
    for count in range(1, 11):
        for one in (a, b):
            one.move_on(FRAME_S)
            one.hear(scores(for_side(other_side(one.side), log_odds)), 1.0)
        undo_exchange([a, b])
        if (a.id, b.id) != numbers:
            return count
    return None


def test_hands_that_both_changed_their_sides_after_an_entanglement_were_exchanged():
    a, b = track(0, 200, "right"), track(1, 400, "left")
    shapes = a.shape, b.shape
    assert exchanged_after(a, b, 4.0) == 3
    assert (a.id, a.side, b.id, b.side) == (1, "left", 0, "right")
    assert (b.shape, a.shape) == shapes
    assert exchanged_after(a, b, 4.0, since_s=np.inf) is None


@pytest.mark.parametrize(
    ("second", "log_odds", "since_s"),
    [("left", 4.0, 1.2), ("left", 1.0, 0.1), ("right", 4.0, 0.1)],
    ids=["long after", "hardly sure", "of one side"],
)
def test_other_hands_were_not_exchanged(second, log_odds, since_s):
    assert exchanged_after(track(0, 200, "right"), track(1, 400, second), log_odds, since_s=since_s) is None


# ------------------------------------------------------------------------------------------------------- a single track


def test_a_hand_that_was_out_of_sight_for_long_does_not_go_on_as_it_went_before():
    gone, blinked = track(0, 200, missed_s=0.5), track(1, 200, missed_s=0.05)
    for one in (gone, blinked):
        one.drift = np.array([300.0, 0.0])
        one.move_on(FRAME_S)
        one.see(at(210).joints_2d, 1.0)
    assert not gone.drift.any()
    assert blinked.drift[0] > 100.0


def test_a_hand_that_rushed_at_the_camera_does_not_fly_through_it_out_of_sight():
    gone = track(0, 200)
    gone.shown, gone.velocity = HAND_MESH, np.array([0.0, 0.0, -30.0])
    for _ in range(3):
        gone.carry_on(HAND_MESH.camera, FRAME_S)
        assert gone.hand.translation[2] > 0
        assert np.isfinite(gone.hand.joints_2d).all()


def test_the_score_of_a_hand_out_of_sight_never_rises():
    lost = track(0, 200)
    lost.shown = replace(HAND_MESH, score=0.9)
    given = []
    for score in (0.95, 0.4, 0.7, 0.1):
        lost.miss(FRAME_S, score, hidden=False)
        given.append(lost.hand.score)
    assert given == [0.9, 0.4, 0.4, 0.1]


@pytest.mark.parametrize(("since_s", "sides"), [(0.1, 2), (1.0, 1)])
def test_both_sides_are_asked_about_just_after_another_hand_was_in_the_way(since_s, sides):
    known = track(0, 200)
    known.entangled_s = since_s
    assert len(known.asks) == sides
    assert known.asks[0] == "right"
