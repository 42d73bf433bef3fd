"""The gesture library: what each finger does, how wide they spread, what the thumb does and what touches what."""

from __future__ import annotations

from dataclasses import dataclass

# Finger shapes: flexion in degrees at the knuckle (MCP) and at the middle joint (PIP); the tip joint follows the
# middle one.
FINGER_SHAPES: dict[str, tuple[float, float]] = {
    "o": (0, 4),  # open
    "u": (-12, 2),  # stretched backwards
    "r": (18, 24),  # relaxed
    "c": (36, 42),  # curved round something thick
    "g": (48, 58),  # gripping something thin
    "f": (82, 102),  # fist
    "e": (48, 104),  # tips on the palm's edge
    "h": (4, 96),  # hook
    "k": (12, 56),  # claw
    "t": (76, 8),  # table top
    "i": (34, 14),  # inclined, straight
    "p": (44, 48),  # pinching
    "n": (64, 62),  # over the thumb
}

# Thumb: CMC flexion, abduction, twist; MCP flexion; IP flexion, in degrees from the rest pose.
THUMB_SHAPES: dict[str, tuple[float, float, float, float, float]] = {
    "out": (-8, 0, -5, -4, -6),
    "wide": (-18, -2, -5, -8, -8),
    "up": (-14, 14, -4, -6, -14),
    "relaxed": (0, 0, 0, 5, 8),
    "oppose": (18, -12, 18, 12, 22),
    "across": (24, 12, 14, 34, 42),
    "palm": (30, 6, 18, 40, 30),
    "side": (-8, 22, -5, 0, 0),
    "key": (4, 22, 0, 14, 18),
}


@dataclass(frozen=True)
class Contact:
    """Two keypoints (FreiHAND indices) that should come to ``distance_mm`` of each other."""

    first: int
    second: int
    distance_mm: float = 11.0


@dataclass(frozen=True)
class Gesture:
    """fingers: four letters of FINGER_SHAPES, index to little; spread: 0 together .. 1 wide; thumb: THUMB_SHAPES."""

    name: str
    weight: float
    fingers: str
    spread: float
    thumb: str
    contacts: tuple[Contact, ...] = ()
    looseness: float = 1.0

    def __post_init__(self) -> None:
        if len(self.fingers) != 4 or not set(self.fingers) <= set(FINGER_SHAPES):
            raise ValueError(f"gesture {self.name}: fingers must be four of {''.join(FINGER_SHAPES)}")
        if self.thumb not in THUMB_SHAPES:
            raise ValueError(f"gesture {self.name}: unknown thumb shape {self.thumb}")


THUMB, INDEX, MIDDLE, RING, LITTLE = 4, 8, 12, 16, 20
_THUMB_INDEX = (Contact(THUMB, INDEX),)
_THUMB_MIDDLE = (Contact(THUMB, MIDDLE),)
_THUMB_ALL = (
    Contact(THUMB, INDEX, 13),
    Contact(THUMB, MIDDLE, 13),
    Contact(THUMB, RING, 20),
    Contact(THUMB, LITTLE, 28),
)
# A thumb over a fist lies on the middle phalanges of index and middle finger.
_OVER_FIST = (Contact(THUMB, 10, 20), Contact(THUMB, 7, 26))
_OVER_MIDDLE = (Contact(THUMB, 10, 19),)
_OVER_RING = (Contact(THUMB, 14, 20),)

GESTURES: tuple[Gesture, ...] = (
    Gesture("open", 12, "oooo", 1.0, "out"),
    Gesture("flat", 7, "oooo", 0.1, "side", (Contact(THUMB, 6, 26),)),
    Gesture("flat_thumb_out", 3, "oooo", 0.1, "out"),
    Gesture("stretched", 3, "uuuu", 0.9, "wide"),
    Gesture("relaxed", 12, "rrcc", 0.4, "relaxed"),
    Gesture("relaxed_open", 6, "orrr", 0.5, "relaxed"),
    Gesture("fist", 9, "ffff", 0.0, "across", _OVER_FIST),
    Gesture("fist_thumb_side", 4, "ffff", 0.0, "key", (Contact(THUMB, 6, 20),)),
    Gesture("point", 8, "offf", 0.0, "across", _OVER_MIDDLE),
    Gesture("point_loose", 4, "oggg", 0.1, "relaxed"),
    Gesture("gun", 5, "offf", 0.0, "wide"),
    Gesture("gun_two", 3, "ooff", 0.0, "out"),
    Gesture("victory", 7, "ooff", 0.8, "across", _OVER_RING),
    Gesture("two_together", 3, "ooff", 0.0, "across", _OVER_RING),
    Gesture("three", 4, "ooof", 0.7, "palm", (Contact(THUMB, 19, 20),)),
    Gesture("three_thumb", 3, "ooff", 0.7, "wide"),
    Gesture("four", 5, "oooo", 0.7, "palm", (Contact(THUMB, 13, 24),)),
    Gesture("four_together", 3, "oooo", 0.05, "palm", (Contact(THUMB, 13, 24),)),
    Gesture("thumbs_up", 6, "ffff", 0.0, "up"),
    Gesture("shaka", 4, "fffo", 0.4, "wide"),
    Gesture("horns", 3, "offo", 0.3, "across", _OVER_MIDDLE),
    Gesture("i_love_you", 3, "offo", 0.4, "out"),
    Gesture("little", 3, "fffo", 0.2, "across", _OVER_FIST),
    Gesture("middle", 2, "foff", 0.0, "across", (Contact(THUMB, 7, 22),)),
    Gesture("pinch", 7, "prcc", 0.2, "oppose", _THUMB_INDEX),
    Gesture("pinch_closed", 4, "pfff", 0.1, "oppose", _THUMB_INDEX),
    Gesture("ok", 6, "pooo", 0.7, "oppose", _THUMB_INDEX),
    Gesture("thumb_middle", 3, "opoo", 0.6, "oppose", _THUMB_MIDDLE),
    Gesture("thumb_ring", 3, "oopo", 0.6, "palm", (Contact(THUMB, RING),)),
    Gesture("thumb_little", 3, "ooop", 0.6, "palm", (Contact(THUMB, LITTLE),)),
    Gesture("grasp", 9, "cccc", 0.4, "oppose"),
    Gesture("grasp_wide", 5, "iccc", 0.9, "oppose"),
    Gesture("wrap", 6, "gggg", 0.1, "oppose"),
    Gesture("plate", 3, "iiii", 0.1, "oppose"),
    Gesture("tripod", 5, "ppgg", 0.0, "oppose", (Contact(THUMB, INDEX, 13), Contact(THUMB, MIDDLE, 16))),
    Gesture("key_grip", 4, "gfff", 0.0, "key", (Contact(THUMB, 7, 15),)),
    Gesture("all_tips", 4, "pppp", 0.0, "oppose", _THUMB_ALL),
    Gesture("claw", 4, "kkkk", 0.7, "relaxed"),
    Gesture("hook", 3, "hhhh", 0.1, "side", (Contact(THUMB, 5, 34),)),
    Gesture("tabletop", 3, "tttt", 0.1, "relaxed"),
    Gesture("trigger", 3, "kfff", 0.0, "across", _OVER_MIDDLE),
    Gesture("typing", 4, "rrrr", 0.5, "relaxed"),
    Gesture("count_one_thumb", 2, "ffff", 0.0, "out"),
    Gesture("asl_c", 3, "cccc", 0.05, "oppose"),
    Gesture("asl_d", 2, "oppp", 0.0, "oppose", _THUMB_MIDDLE),
    Gesture("asl_e", 2, "eeee", 0.0, "palm", (Contact(THUMB, MIDDLE, 18),)),
    Gesture("asl_g", 2, "tfff", 0.0, "key"),
    Gesture("asl_k", 2, "oiff", 0.3, "oppose", (Contact(THUMB, 10, 18),)),
    Gesture("asl_m", 2, "nnnf", 0.0, "palm"),
    Gesture("asl_n", 2, "nnff", 0.0, "palm"),
    Gesture("asl_o", 3, "pppp", 0.0, "oppose", _THUMB_ALL),
    Gesture("asl_r", 2, "oiff", -0.7, "across", _OVER_RING, 0.5),
    Gesture("asl_t", 2, "nfff", 0.0, "key", (Contact(THUMB, 7, 14),)),
    Gesture("asl_x", 2, "hfff", 0.0, "across", _OVER_MIDDLE),
)
GRASPS = frozenset({"grasp", "grasp_wide", "wrap", "plate", "tripod", "pinch", "key_grip", "asl_c", "all_tips"})
