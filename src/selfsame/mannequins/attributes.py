"""Everything about a picture that is not identity: the choices that captions speak of and the numbers of the view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STYLES = ("photo", "pencil sketch", "watercolour", "pixel art", "film noir", "neon", "clay", "comic")
SCENES = (
    "studio", "beach", "forest", "city", "mountains", "desert", "library", "space", "kitchen", "garden", "sunset", "underwater",
)  # fmt: skip
EXPRESSIONS = ("neutral", "smiling", "laughing", "sad", "surprised")
CLOTHES = ("t-shirt", "striped sweater", "suit", "hoodie", "spacesuit", "dotted dress")
HATS = ("none", "cap", "beanie", "sun hat", "crown")
GLASSES = ("none", "round", "square")
TURNS = ("front", "left", "right")
COLOURS = {
    "red": (206, 48, 48),
    "orange": (238, 130, 38),
    "yellow": (244, 206, 62),
    "green": (62, 152, 78),
    "teal": (36, 150, 156),
    "blue": (52, 98, 196),
    "purple": (128, 72, 172),
    "pink": (238, 128, 170),
    "white": (238, 238, 236),
    "black": (44, 44, 50),
}
COLOUR_NAMES = tuple(COLOURS)


def rgb(name: str) -> np.ndarray:
    """sRGB of a named colour in [0, 1]."""
    return np.asarray(COLOURS[name], dtype=np.float64) / 255


@dataclass(frozen=True)
class View:
    """Where an object stands and how it is turned."""

    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    scale: float = 0.72  # camera units per head unit
    x: float = 0.0  # camera units
    y: float = 0.0


@dataclass(frozen=True)
class Look:
    """What a person wears and shows in one picture."""

    expression: str = "neutral"
    clothes: str = "t-shirt"
    clothes_colour: str = "blue"
    hat: str = "none"
    hat_colour: str = "red"
    glasses: str = "none"
    gaze_x: float = 0.0  # u, image-right positive
    gaze_y: float = 0.0
    strength: float = 1.0  # of the expression


@dataclass(frozen=True)
class Light:
    """One key light over an even sky."""

    azimuth_deg: float = -35.0  # negative: from image left
    height_deg: float = 40.0
    warmth: float = 0.0  # u
    key: float = 1.0
    fill: float = 0.5


def turn_of(yaw_deg: float) -> str:
    """The word for a yaw; between the words no word is true, so captions stay silent."""
    if abs(yaw_deg) <= 10:
        return "front"
    if abs(yaw_deg) < 20:
        return ""
    return "right" if yaw_deg > 0 else "left"
