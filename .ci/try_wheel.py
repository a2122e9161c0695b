"""Caption the example pictures with the installed package and compare them with their file names.

.ci/try_wheel.py FOLDER [DTYPE]
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path

begin, cpu_begin = time.perf_counter(), time.process_time()

import gitfast  # noqa: E402
from gitfast import _C  # noqa: E402

dtype = sys.argv[2] if len(sys.argv) > 2 else "auto"
model = gitfast.load("git-tiny", dtype=dtype)
images = sorted(Path(sys.argv[1]).glob("*.png"))
first = str(model.caption(images[0]))
seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
captions = [first, *map(str, model.caption(images[1:]))]
wrong = [
    (image.stem, text) for image, text in zip(images, captions, strict=True) if image.stem != text.replace(" ", "-")
]
bills = [path for path in metadata.files("gitfast") or () if path.name == "gitfast.cdx.json"]
parts = [part["name"] for part in json.loads(bills[0].read_text())["components"]] if bills else []
versions = f"gitfast {gitfast.__version__}, Python {sys.version.split()[0]}, {_C.choose_isa('')}, {dtype}"
print(f"{versions}: {seconds:.2f} s to the first caption, {cpu_seconds:.2f} of CPU")
if "pybind11" not in parts:
    sys.exit(f"the bill of materials lists {parts}")
sys.exit(f"wrong captions: {wrong}" if wrong or not images else 0)
