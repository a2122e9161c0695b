"""Text as it is generated, and how to stop early."""

import itertools
from pathlib import Path

import gitfast

IMAGE = Path(__file__).parent / "images" / "a-green-cross-to-the-left-of-a-red-triangle.png"

model = gitfast.load("git-tiny")
for piece in model.stream(IMAGE):
    print(piece, end="|", flush=True)
print()

pieces = model.stream(IMAGE)
print("".join(itertools.islice(pieces, 3)), "...")
pieces.close()  # ends the generation within one token
