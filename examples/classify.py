"""Classification by generation: labels are texts, and the model says how probable each is as its answer."""

from itertools import product
from pathlib import Path

import gitfast

IMAGES = sorted((Path(__file__).parent / "images").glob("*.png"))
COLORS, SHAPES = ("red", "orange", "green", "blue"), ("square", "circle", "star")
LABELS = [f"a {size} {color} {shape}" for size, color, shape in product(("small", "large"), COLORS, SHAPES)]
LABELS += [f"{number} {color} {shape}s" for number, color, shape in product(("two", "five"), COLORS, SHAPES)]

model = gitfast.load("git-tiny")
for path, ranking in zip(IMAGES, model.classify(IMAGES, LABELS, top_k=2), strict=True):
    print(path.name, " | ".join(f"{label} {label.probability:.3f}" for label in ranking))

# The same idea without choosing: how probable whole texts are.
image = IMAGES[1]
for text, score in zip(LABELS[:3], model.score(image, LABELS[:3], normalize="mean"), strict=True):
    print(f"{image.name}: {text!r} {score:.2f} per token")
