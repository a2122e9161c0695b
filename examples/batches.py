"""Many images in one call: batches with bounded memory, inputs that cannot be read, and images seen before."""

import time
from pathlib import Path

import gitfast

IMAGES = sorted((Path(__file__).parent / "images").glob("*.png"))

model = gitfast.load("git-tiny", prefix_cache_bytes=64 << 20)
for path, result in zip(
    ["missing.png", *IMAGES], model.caption(["missing.png", *IMAGES], on_error="return"), strict=True
):
    print(Path(path).name, "->", result.error or result)

start = time.perf_counter()
model.caption(IMAGES * 50, batch_size=16)
print(f"{len(IMAGES) * 50} captions in {time.perf_counter() - start:.2f} s, {model.engine.cache_stats}")
