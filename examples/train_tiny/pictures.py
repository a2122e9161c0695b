"""Pictures that describe themselves: coloured shapes, two shapes in relation, counts, and printed words.

Every picture has exactly one caption. With two shapes the caption goes from left to right, or from top to bottom when
they lie one above the other. Pictures are drawn from a seed; a tenth of all combinations (which colour on which shape,
which word in which colour, ...) is held out and never drawn for training.
"""

from __future__ import annotations

import importlib.util
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (214, 38, 38),
    "orange": (245, 134, 20),
    "yellow": (238, 208, 18),
    "green": (40, 158, 62),
    "blue": (36, 84, 214),
    "purple": (138, 48, 176),
    "black": (24, 24, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES = ("small", "large")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
WORDS = (
    "bank",
    "bar",
    "bread",
    "bus",
    "cafe",
    "cash",
    "danger",
    "door",
    "east",
    "exit",
    "fish",
    "food",
    "gate",
    "help",
    "hotel",
    "ice",
    "keep",
    "left",
    "milk",
    "north",
    "open",
    "park",
    "pull",
    "push",
    "quiet",
    "sale",
    "school",
    "shop",
    "slow",
    "stop",
    "taxi",
    "tea",
    "west",
    "zoo",
)
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "STIXGeneral.ttf",
    "pillow",  # Pillow's own default font
)
CANVAS_SIZES = (64, 80, 96, 128, 160, 224)

Split = Literal["train", "held-out"]
Question = tuple[str, str]  # the question and its answer


@dataclass(frozen=True)
class Shape:
    """A shape in unit coordinates: (0, 0) is the top left of the picture, (1, 1) the bottom right."""

    name: str
    color: str
    x: float
    y: float
    radius: float

    def __str__(self) -> str:
        return f"{self.color} {self.name}"


@dataclass(frozen=True)
class Word:
    """A printed word, as wide as ``width`` of the picture, centred on (x, y)."""

    text: str
    color: str
    font: str
    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Picture:
    """A drawn picture, its one caption, and questions with their answers."""

    kind: str
    image: Image.Image
    caption: str
    questions: list[Question]


def make_picture(seed: int, split: Split, kind: str | None = None) -> Picture:
    """Make the picture of one seed; the same seed always gives the same pixels and words."""
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    kinds: dict[str, Callable[[np.random.Generator, Split], tuple[list[Shape | Word], str, list[Question]]]] = {
        "shape": _one_shape,
        "relation": _two_shapes,
        "count": _many_shapes,
        "word": _word,
    }
    kind = kind or str(rng.choice(list(kinds), p=[0.12, 0.4, 0.18, 0.3]))
    things, caption, questions = kinds[kind](rng, split)
    return Picture(kind, draw(things, random_canvas(rng), rng), caption, questions)


def in_split(split: Split, *combination: str) -> bool:
    """Return True if a combination of words belongs to ``split``: a checksum holds out one in ten."""
    return (zlib.crc32(" ".join(combination).encode()) % 10 == 0) == (split == "held-out")


def pick(rng: np.random.Generator, split: Split, *choices: tuple[str, ...]) -> tuple[str, ...]:
    """Pick one combination of ``choices`` that belongs to ``split``."""
    while True:
        combination = tuple(options[rng.integers(len(options))] for options in choices)
        if in_split(split, *combination):
            return combination


def _one_shape(rng: np.random.Generator, split: Split) -> tuple[list[Shape | Word], str, list[Question]]:
    size, color, name = pick(rng, split, SIZES, tuple(COLORS), SHAPES)
    radius = rng.uniform(0.09, 0.14) if size == "small" else rng.uniform(0.27, 0.36)
    x, y = rng.uniform(radius + 0.04, 0.96 - radius, size=2)
    questions = [
        (f"what color is the {name}?", color),
        ("what shape is this?", f"a {name}"),
        (f"is the {name} small or large?", size),
        (f"how many {plural(name)} are there?", "one"),
        _is_there(rng, [(color, name)]),
    ]
    return [Shape(name, color, x, y, radius)], f"{a(size)} {color} {name}", questions


def _two_shapes(rng: np.random.Generator, split: Split) -> tuple[list[Shape | Word], str, list[Question]]:
    while True:
        color1, name1, color2, name2 = pick(rng, split, tuple(COLORS), SHAPES, tuple(COLORS), SHAPES)
        if (color1, name1) != (color2, name2):
            break
    sideways = rng.random() < 0.5
    radius1, radius2 = rng.uniform(0.13, 0.19, size=2)
    # Along the axis of the relation the two are well apart; across it they are nearly level.
    start, end = rng.uniform(0.2, 0.32), rng.uniform(0.68, 0.8)
    level1 = rng.uniform(0.25, 0.75)
    level2 = np.clip(level1 + rng.uniform(-0.12, 0.12), 0.22, 0.78)
    (x1, y1), (x2, y2) = ((start, level1), (end, level2)) if sideways else ((level1, start), (level2, end))
    first, second = Shape(name1, color1, x1, y1, radius1), Shape(name2, color2, x2, y2, radius2)
    before, after = ("to the left of", "to the right of") if sideways else ("above", "below")
    places = ("on the left", "on the right") if sideways else ("at the top", "at the bottom")
    questions = [
        (f"what is {places[0]}?", a(first)),
        (f"what is {places[1]}?", a(second)),
        (f"what is {before} the {second}?", a(first)),
        (f"what is {after} the {first}?", a(second)),
        (f"where is the {first}?", places[0]),
        (f"where is the {second}?", places[1]),
        ("how many shapes are there?", "two"),
        _is_there(rng, [(color1, name1), (color2, name2)]),
    ]
    if name1 != name2:
        questions += [(f"what color is the {shape.name}?", shape.color) for shape in (first, second)]
    return [first, second], f"{a(first)} {before} {a(second)}", questions


def _many_shapes(rng: np.random.Generator, split: Split) -> tuple[list[Shape | Word], str, list[Question]]:
    numbers = tuple(word for n, word in NUMBERS.items() if n > 1)
    number, color, name = pick(rng, split, numbers, tuple(COLORS), SHAPES)
    count = 2 + numbers.index(number)
    radius = rng.uniform(0.085, 0.115)
    centres: list[np.ndarray] = []
    while len(centres) < count:
        centre = rng.uniform(radius + 0.03, 0.97 - radius, size=2)
        if all(np.hypot(*(centre - other)) > 2.3 * radius for other in centres):
            centres.append(centre)
    shapes: list[Shape | Word] = [Shape(name, color, x, y, radius) for x, y in centres]
    questions = [
        (f"how many {plural(name)} are there?", number),
        ("how many shapes are there?", number),
        (f"what color are the {plural(name)}?", color),
        ("what shapes are these?", plural(name)),
        _is_there(rng, [(color, name)]),
    ]
    return shapes, f"{number} {color} {plural(name)}", questions


def _word(rng: np.random.Generator, split: Split) -> tuple[list[Shape | Word], str, list[Question]]:
    text, color = pick(rng, split, tuple(WORDS), tuple(COLORS))
    width = min(rng.uniform(0.66, 0.92), 0.2 * len(text) + 0.1)
    x = rng.uniform(0.03 + width / 2, 0.97 - width / 2)
    word = Word(text, color, FONTS[rng.integers(len(FONTS))], x, rng.uniform(0.3, 0.7), width)
    questions = [
        ("what does the sign say?", text),
        ("what word is this?", text),
        ("what color is the word?", color),
    ]
    return [word], f"the word {text} in {color}", questions


def _is_there(rng: np.random.Generator, present: list[tuple[str, str]]) -> Question:
    """Make a yes/no question; half of the answers are no, and a no differs from what is there in one word only."""
    color, name = present[rng.integers(len(present))]
    if rng.random() < 0.5:
        return f"is there {a(color)} {name}?", "yes"
    while (color, name) in present:
        color, name = present[rng.integers(len(present))]
        if rng.random() < 0.5:
            color = list(COLORS)[rng.integers(len(COLORS))]
        else:
            name = SHAPES[rng.integers(len(SHAPES))]
    return f"is there {a(color)} {name}?", "no"


def a(noun: object) -> str:
    """Put the article before a noun: a red circle, an orange circle."""
    return f"an {noun}" if str(noun)[0] in "aeiou" else f"a {noun}"


def plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def random_canvas(rng: np.random.Generator) -> tuple[int, int]:
    """Draw the size of a picture; a third are wider or taller than square, with all content in the central square."""
    size = CANVAS_SIZES[rng.integers(len(CANVAS_SIZES))]
    stretch = int(size * rng.uniform(1.0, 1.5)) if rng.random() < 1 / 3 else size
    return (stretch, size) if rng.random() < 0.5 else (size, stretch)


def draw(things: list[Shape | Word], canvas: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw on a light background at twice the size of ``canvas`` (width, height), then halve: smooth edges."""
    width, height = canvas[0] * 2, canvas[1] * 2
    side = min(width, height)
    corner = ((width - side) / 2, (height - side) / 2)
    background = tuple(int(v) for v in np.clip(rng.integers(215, 256) + rng.integers(-10, 11, size=3), 0, 255))
    image = Image.new("RGB", (width, height), background)
    pen = ImageDraw.Draw(image)
    tints: dict[str, tuple[int, ...]] = {}  # shapes of one colour in one picture have one tint
    for thing in things:
        if thing.color not in tints:
            tint = np.clip(np.array(COLORS[thing.color]) + rng.integers(-14, 15, size=3), 0, 255)
            tints[thing.color] = tuple(int(v) for v in tint)
        x, y = corner[0] + thing.x * side, corner[1] + thing.y * side
        if isinstance(thing, Shape):
            pen.polygon([(x + dx, y + dy) for dx, dy in _outline(thing, side)], fill=tints[thing.color])
        else:
            font = _font_of_width(thing.font, thing.text, thing.width * side)
            pen.text((x, y), thing.text, font=font, fill=tints[thing.color], anchor="mm")
    return image.reduce(2)


def _outline(shape: Shape, side: float) -> list[tuple[float, float]]:
    """Return the corners relative to the centre, in pixels."""
    if shape.name == "square":
        corners = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    elif shape.name == "triangle":
        corners = [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]
    elif shape.name == "diamond":
        corners = [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]
    elif shape.name == "cross":
        i, o = 0.3, 0.95  # inner and outer
        corners = [(-i, -o), (i, -o), (i, -i), (o, -i), (o, i), (i, i)]
        corners += [(i, o), (-i, o), (-i, i), (-o, i), (-o, -i), (-i, -i)]
    else:
        points, inner = (10, 0.42) if shape.name == "star" else (48, 1.0)
        radii = [inner if i % 2 else 1.0 for i in range(points)]
        angles = [2 * math.pi * i / points - math.pi / 2 for i in range(points)]
        corners = [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    return [(x * shape.radius * side, y * shape.radius * side) for x, y in corners]


def _font_of_width(name: str, text: str, width: float) -> ImageFont.FreeTypeFont:
    left, _, right, _ = _font(name, 100).getbbox(text)
    return _font(name, max(6, round(100 * width / (right - left))))


@lru_cache(maxsize=1024)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name == "pillow":
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("drawing words needs the fonts of matplotlib: pip install matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
