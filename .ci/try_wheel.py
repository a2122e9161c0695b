"""Caption the example pictures with the installed package and compare them with their file names."""

from __future__ import annotations

import sys
import time
from pathlib import Path

begin = time.perf_counter()

import gitfast  # noqa: E402
from gitfast import _C  # noqa: E402

model = gitfast.load("git-tiny")
images = sorted(Path(sys.argv[1]).glob("*.png"))
first = str(model.caption(images[0]))
seconds = time.perf_counter() - begin
captions = [first, *map(str, model.caption(images[1:]))]
wrong = [
    (image.stem, text) for image, text in zip(images, captions, strict=True) if image.stem != text.replace(" ", "-")
]
versions = f"gitfast {gitfast.__version__}, Python {sys.version.split()[0]}, {_C.choose_isa('')}"
print(f"{versions}: {seconds:.2f} s to the first caption")
sys.exit(f"wrong captions: {wrong}" if wrong or not images else 0)
