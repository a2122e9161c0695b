"""Six-frame clips of one shape in motion, each with one caption, drawn from a seed like the pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from pictures import COLORS, SHAPES, Question, Shape, Split, a, draw, pick, random_canvas
from PIL import Image

NUM_FRAMES = 6
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "stands still",
    "appears",
    "disappears",
)


@dataclass(frozen=True)
class Clip:
    """Six frames, their one caption, and questions with their answers. ``kind`` is the motion."""

    kind: str
    frames: list[Image.Image]
    caption: str
    questions: list[Question]


def make_clip(seed: int, split: Split) -> Clip:
    """Make the clip of one seed; the same seed always gives the same pixels and words."""
    rng = np.random.default_rng([seed, 2 if split == "train" else 3])
    color, name, motion = pick(rng, split, tuple(COLORS), SHAPES, MOTIONS)
    shapes = _move(rng, name, color, motion)
    canvas, look = random_canvas(rng), int(rng.integers(1 << 31))
    # The same generator for every frame: background and tint stay as they are.
    frames = [draw([] if s is None else [s], canvas, np.random.default_rng(look)) for s in shapes]
    questions = [
        (f"what does the {name} do?", f"it {motion}"),
        (f"what color is the {name}?", color),
        ("what shape is this?", f"a {name}"),
    ]
    return Clip(motion, frames, f"{a(color)} {name} {motion}", questions)


def _move(rng: np.random.Generator, name: str, color: str, motion: str) -> list[Shape | None]:
    """Return the shape in every frame; None where it is out of sight."""
    radius = rng.uniform(0.13, 0.22)
    near, far = rng.uniform(0.24, 0.36), rng.uniform(0.64, 0.76)
    x, y = rng.uniform(0.3, 0.7, size=2)
    still = Shape(name, color, x, y, radius)
    steps = np.linspace(0, 1, NUM_FRAMES)
    path = near + (far - near) * steps
    if motion in ("moves left", "moves up"):
        path = path[::-1]
    if motion in ("moves left", "moves right"):
        return [replace(still, x=p) for p in path]
    if motion in ("moves up", "moves down"):
        return [replace(still, y=p) for p in path]
    if motion in ("grows", "shrinks"):
        radii = rng.uniform(0.08, 0.12) + rng.uniform(0.12, 0.18) * (steps if motion == "grows" else steps[::-1])
        return [replace(still, radius=r) for r in radii]
    cut = rng.integers(2, NUM_FRAMES - 1)
    if motion == "appears":
        return [None if i < cut else still for i in range(NUM_FRAMES)]
    if motion == "disappears":
        return [still if i < cut else None for i in range(NUM_FRAMES)]
    return [still] * NUM_FRAMES
