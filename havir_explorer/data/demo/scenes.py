"""The teaching world's pictures: a scene is a pure function of an integer.

A scene has one of six backgrounds and one to three things standing in it, each with a kind, a colour, a size and a place. The same record
is drawn (at any side length), captioned (five phrasings, as COCO has) and, in :mod:`~havir_explorer.data.demo.brain`, seen by the
synthetic subjects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from havir_explorer.records import UInt8Array

KINDS = ("face", "person", "house", "car", "dog", "apple", "sign", "tree")
COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 138, 36),
    "yellow": (246, 208, 62),
    "green": (64, 158, 76),
    "blue": (48, 104, 204),
    "purple": (142, 76, 176),
    "white": (244, 244, 240),
}
SIZES = {"small": 0.34, "medium": 0.46, "large": 0.64}
BACKGROUNDS = ("meadow", "beach", "city", "snow", "night", "room")
PLACES = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "city": "in a city",
    "snow": "in the snow",
    "night": "at night",
    "room": "in a room",
}
SKINS = ((250, 214, 180), (214, 158, 112), (140, 92, 60))
_WORLD = 20_221_116  # names this world's random stream; another number is another world
_OVERSAMPLE = 4

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """One thing in a scene.

    Parameters
    ----------
    kind, colour, size : str
        From ``KINDS``, ``COLOURS`` and ``SIZES``.
    x, y : float
        Centre and ground line as fractions of the picture's side, from the left and from the top.
    skin : int
        Index into ``SKINS``, for faces and people.
    """

    kind: str
    colour: str
    size: str
    x: float
    y: float
    skin: int


@dataclass(frozen=True)
class Scene:
    """A background and one to three things, from left to right."""

    scene_id: int
    background: str
    things: tuple[Thing, ...]


def scene(scene_id: int) -> Scene:
    """Return the scene with this number.

    Parameters
    ----------
    scene_id : int
        Any non-negative integer. In the demo data set it is NSD's 73k id (0-based); the generator is trained on numbers from 100,000.

    Returns
    -------
    Scene
        The same record for the same number, on every machine.
    """
    rng = np.random.default_rng([_WORLD, scene_id])
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.38, 0.17]))
    kinds = rng.permutation(len(KINDS))[:count]
    colours = rng.permutation(len(COLOURS))[:count]
    sizes = {1: ("small", "medium", "large", "large"), 2: ("small", "medium", "medium"), 3: ("small",)}[count]
    slot = 1.0 / count
    things = []
    for place, (kind, colour) in enumerate(zip(kinds, colours, strict=True)):
        size = sizes[rng.integers(len(sizes))]
        half = 0.5 * SIZES[size]
        low, high = max(place * slot + 0.8 * half, half), min((place + 1) * slot - 0.8 * half, 1.0 - half)
        x = 0.5 * (low + high) if high <= low else rng.uniform(low, high)
        y = rng.uniform(max(0.60, 2.0 * half + 0.06), 0.96)
        things.append(Thing(KINDS[kind], tuple(COLOURS)[colour], size, float(x), float(y), int(rng.integers(len(SKINS)))))
    return Scene(scene_id, background, tuple(things))


def draw(seen: Scene, side: int = 425) -> UInt8Array:
    """Draw a scene.

    Parameters
    ----------
    seen : Scene
        What to draw.
    side : int
        Side length in pixels; NSD's pictures are 425.

    Returns
    -------
    uint8 (side, side, 3)
        RGB, antialiased.
    """
    oversample = _OVERSAMPLE if side <= 128 else 2
    canvas = side * oversample
    image = Image.new("RGB", (canvas, canvas))
    pen = ImageDraw.Draw(image)
    _BACKDROPS[seen.background](_Brush(pen, canvas, 0.5, 1.0, 1.0))
    for thing in sorted(seen.things, key=lambda t: t.y):
        brush = _Brush(pen, canvas, thing.x, thing.y, SIZES[thing.size])
        brush.ellipse(-0.42, -0.05, 0.42, 0.05, _shade(_ground(seen.background), 0.78))
        _DRAWINGS[thing.kind](brush, COLOURS[thing.colour], SKINS[thing.skin])
    return np.asarray(image.reduce(oversample))


def captions(seen: Scene) -> tuple[str, ...]:
    """Return five captions of a scene, from complete to terse, as five annotators might write them."""
    place, things = PLACES[seen.background], seen.things
    full = [_phrase(t, size=True, colour=True) for t in things]
    listed = " and ".join(full)
    uncoloured = " and ".join(_phrase(t, size=True, colour=False) for t in things)
    unsized = " and ".join(_phrase(t, size=False, colour=True) for t in things)
    if len(things) == 1:
        where = ("on the left", "in the middle", "on the right")[min(int(things[0].x * 3), 2)]
        relation, converse = f"{full[0]} {where} {place}", f"{where} there is {full[0]} {place}"
    else:
        relation = f"{full[0]} left of {' and '.join(full[1:])} {place}"
        converse = f"{full[-1]} right of {' and '.join(full[:-1])} {place}"
    return (relation, f"{place} there is {listed}", converse, f"{unsized} {place}", f"{uncoloured} {place}")


def _phrase(thing: Thing, *, size: bool, colour: bool) -> str:
    big = f"{thing.size} " if size else ""
    if thing.kind in ("face", "person"):
        tail = {"face": f" with {thing.colour} hair", "person": f" in {thing.colour}"}[thing.kind] if colour else ""
        return f"a {big}{thing.kind}{tail}"
    hue = f"{thing.colour} " if colour else ""
    article = "an" if not big and (hue + thing.kind)[0] in "ao" else "a"
    return f"{article} {big}{hue}{thing.kind}"


def _shade(colour: RGB, factor: float) -> RGB:
    red, green, blue = (min(255, round(c * factor)) for c in colour)
    return red, green, blue


class _Brush:
    """Draws in a thing's own units: x from -0.5 to 0.5 about its centre, y from 0 at its foot to 1 at its top."""

    def __init__(self, pen: ImageDraw.ImageDraw, canvas: int, x: float, y: float, size: float) -> None:
        self._pen, self._canvas, self._x, self._y, self._size = pen, canvas, x, y, size

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (self._x + x * self._size) * self._canvas, (self._y - y * self._size) * self._canvas

    def box(self, left: float, bottom: float, right: float, top: float, colour: RGB) -> None:
        self._pen.rectangle((self._at(left, top), self._at(right, bottom)), fill=colour)

    def ellipse(self, left: float, bottom: float, right: float, top: float, colour: RGB) -> None:
        self._pen.ellipse((self._at(left, top), self._at(right, bottom)), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: RGB) -> None:
        self._pen.polygon([self._at(x, y) for x, y in points], fill=colour)

    def arc(self, left: float, bottom: float, right: float, top: float, colour: RGB, width: float) -> None:
        self._pen.arc((self._at(left, top), self._at(right, bottom)), 20, 160, colour, max(1, round(width * self._size * self._canvas)))


_DARK: RGB = (40, 38, 48)
_BROWN: RGB = (120, 78, 44)
_GLASS: RGB = (190, 226, 244)


def _face(b: _Brush, colour: RGB, skin: RGB) -> None:
    b.ellipse(-0.45, 0.20, 0.45, 1.0, colour)
    b.ellipse(-0.37, 0.0, 0.37, 0.86, skin)
    b.polygon([(-0.40, 0.66), (0.40, 0.66), (0.26, 0.92), (-0.26, 0.92)], colour)
    for x in (-0.17, 0.17):
        b.ellipse(x - 0.085, 0.42, x + 0.085, 0.59, (255, 255, 255))
        b.ellipse(x - 0.05, 0.44, x + 0.05, 0.56, _DARK)
    b.arc(-0.19, 0.14, 0.19, 0.40, (176, 40, 52), 0.065)


def _person(b: _Brush, colour: RGB, skin: RGB) -> None:
    b.box(-0.14, 0.0, -0.015, 0.38, _DARK)
    b.box(0.015, 0.0, 0.14, 0.38, _DARK)
    b.polygon([(-0.17, 0.34), (0.17, 0.34), (0.2, 0.72), (-0.2, 0.72)], colour)
    b.polygon([(-0.20, 0.72), (-0.12, 0.72), (-0.30, 0.36), (-0.38, 0.40)], colour)
    b.polygon([(0.20, 0.72), (0.12, 0.72), (0.30, 0.36), (0.38, 0.40)], colour)
    b.ellipse(-0.14, 0.70, 0.14, 1.0, _BROWN)
    b.ellipse(-0.12, 0.69, 0.12, 0.93, skin)


def _house(b: _Brush, colour: RGB, _skin: RGB) -> None:
    b.box(-0.40, 0.0, 0.40, 0.58, colour)
    b.polygon([(-0.5, 0.56), (0.5, 0.56), (0.0, 1.0)], (112, 62, 54))
    b.box(-0.09, 0.0, 0.11, 0.34, _BROWN)
    b.box(-0.32, 0.24, -0.15, 0.44, _GLASS)
    b.box(0.17, 0.24, 0.34, 0.44, _GLASS)


def _car(b: _Brush, colour: RGB, _skin: RGB) -> None:
    b.polygon([(-0.30, 0.34), (-0.19, 0.60), (0.17, 0.60), (0.32, 0.34)], _shade(colour, 0.86))
    b.polygon([(-0.22, 0.35), (-0.14, 0.54), (-0.01, 0.54), (-0.01, 0.35)], _GLASS)
    b.polygon([(0.04, 0.35), (0.04, 0.54), (0.14, 0.54), (0.23, 0.35)], _GLASS)
    b.box(-0.5, 0.12, 0.5, 0.36, colour)
    for x in (-0.27, 0.27):
        b.ellipse(x - 0.13, 0.0, x + 0.13, 0.26, _DARK)
        b.ellipse(x - 0.05, 0.08, x + 0.05, 0.18, (200, 200, 205))


def _dog(b: _Brush, colour: RGB, _skin: RGB) -> None:
    dark = _shade(colour, 0.72)
    for x in (-0.30, -0.16, 0.10, 0.23):
        b.box(x, 0.0, x + 0.085, 0.34, dark)
    b.polygon([(-0.32, 0.50), (-0.48, 0.74), (-0.42, 0.78), (-0.24, 0.56)], dark)
    b.ellipse(-0.36, 0.24, 0.34, 0.60, colour)
    b.ellipse(0.12, 0.46, 0.46, 0.82, colour)
    b.ellipse(0.34, 0.50, 0.52, 0.66, colour)
    b.ellipse(0.46, 0.57, 0.53, 0.65, _DARK)
    b.ellipse(0.11, 0.46, 0.24, 0.82, dark)
    b.ellipse(0.30, 0.64, 0.36, 0.71, _DARK)


def _apple(b: _Brush, colour: RGB, _skin: RGB) -> None:
    b.polygon([(-0.03, 0.68), (0.04, 0.68), (0.08, 0.94), (0.02, 0.94)], _BROWN)
    b.ellipse(0.05, 0.76, 0.32, 0.92, (70, 150, 66))
    b.ellipse(-0.42, 0.0, 0.12, 0.76, colour)
    b.ellipse(-0.12, 0.0, 0.42, 0.76, colour)
    b.ellipse(-0.29, 0.42, -0.15, 0.60, _shade(colour, 1.28))


def _sign(b: _Brush, colour: RGB, _skin: RGB) -> None:
    b.box(-0.05, 0.0, 0.05, 0.5, _BROWN)
    b.box(-0.5, 0.40, 0.5, 0.94, _DARK)
    b.box(-0.46, 0.44, 0.46, 0.90, colour)
    for left, strokes in ((-0.37, "T"), (-0.09, "H"), (0.18, "E")):
        right, low, high, thick = left + 0.19, 0.52, 0.82, 0.06
        if strokes in "HE":
            b.box(left, low, left + thick, high, _DARK)
        if strokes == "H":
            b.box(right - thick, low, right, high, _DARK)
            b.box(left, 0.64, right, 0.70, _DARK)
        if strokes == "T":
            b.box(left + 0.065, low, right - 0.065, high, _DARK)
        if strokes in "TE":
            b.box(left, high - thick, right, high, _DARK)
        if strokes == "E":
            b.box(left, low, right, low + thick, _DARK)
            b.box(left, 0.64, right - 0.03, 0.70, _DARK)


def _tree(b: _Brush, colour: RGB, _skin: RGB) -> None:
    b.box(-0.08, 0.0, 0.08, 0.45, _BROWN)
    for base, width, top in ((0.26, 0.44, 0.66), (0.46, 0.36, 0.84), (0.66, 0.27, 1.0)):
        b.polygon([(-width, base), (width, base), (0.0, top)], _shade(colour, 0.8 + 0.2 * base))


_Drawing = Callable[[_Brush, RGB, RGB], None]
_DRAWINGS: dict[str, _Drawing] = {
    "face": _face,
    "person": _person,
    "house": _house,
    "car": _car,
    "dog": _dog,
    "apple": _apple,
    "sign": _sign,
    "tree": _tree,
}


def _sky(b: _Brush, sky: RGB, ground: RGB, horizon: float) -> None:
    b.box(-0.5, horizon, 0.5, 1.0, sky)
    b.box(-0.5, 0.0, 0.5, horizon, ground)


def _meadow(b: _Brush) -> None:
    _sky(b, (148, 206, 240), _ground("meadow"), 0.48)
    b.ellipse(-0.85, 0.28, 0.15, 0.62, (112, 186, 96))
    b.ellipse(0.28, 0.80, 0.42, 0.94, (255, 224, 96))


def _beach(b: _Brush) -> None:
    _sky(b, (172, 222, 246), _ground("beach"), 0.42)
    b.box(-0.5, 0.40, 0.5, 0.60, (56, 142, 190))


def _city(b: _Brush) -> None:
    _sky(b, (206, 208, 214), _ground("city"), 0.40)
    skyline = ((-0.5, -0.28, 0.80, 150), (-0.28, -0.08, 0.62, 172), (-0.08, 0.12, 0.88, 142), (0.12, 0.32, 0.68, 164), (0.32, 0.5, 0.82, 152))
    for left, right, top, tone in skyline:
        b.box(left, 0.40, right, top, (tone, tone - 4, tone + 8))


def _snow(b: _Brush) -> None:
    _sky(b, (176, 196, 220), _ground("snow"), 0.44)
    b.polygon([(-0.5, 0.44), (-0.20, 0.82), (0.10, 0.44)], (124, 142, 172))
    b.polygon([(-0.05, 0.44), (0.26, 0.74), (0.5, 0.44)], (144, 162, 190))


def _night(b: _Brush) -> None:
    _sky(b, (24, 28, 70), _ground("night"), 0.42)
    b.ellipse(-0.40, 0.76, -0.22, 0.94, (244, 240, 200))
    for x, y in ((0.05, 0.86), (0.22, 0.72), (0.38, 0.90), (-0.12, 0.66)):
        b.ellipse(x - 0.013, y - 0.013, x + 0.013, y + 0.013, (240, 240, 220))


def _room(b: _Brush) -> None:
    _sky(b, (236, 206, 190), _ground("room"), 0.34)
    b.box(0.14, 0.60, 0.40, 0.90, (150, 110, 84))
    b.box(0.17, 0.63, 0.37, 0.87, (178, 220, 240))


_BACKDROPS: dict[str, Callable[[_Brush], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "city": _city,
    "snow": _snow,
    "night": _night,
    "room": _room,
}


def _ground(background: str) -> RGB:
    return {
        "meadow": (132, 200, 104),
        "beach": (238, 216, 160),
        "city": (112, 112, 118),
        "snow": (240, 244, 250),
        "night": (38, 58, 62),
        "room": (176, 132, 92),
    }[background]
