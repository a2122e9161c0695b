"""Draw the example pictures and clips: ``python examples/train_tiny/samples.py``.

All are held out: their combinations of colours, shapes and words are in no training picture. Clips are animated GIFs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from clips import Clip, make_clip
from pictures import Picture, make_picture

EXAMPLES = Path(__file__).resolve().parent.parent
MIN_SIZE = 160  # of the shorter edge, in pixels
KINDS = {"shape": 1, "relation": 2, "count": 1, "word": 2}  # how many of each
MOTIONS = ("moves left", "grows", "disappears")
FRAME_MILLISECONDS = 200


def pictures(kind: str) -> Iterator[Picture]:
    """Return held-out pictures of one kind, large enough to be looked at."""
    for seed in itertools.count():
        picture = make_picture(seed, "held-out", kind)
        if min(picture.image.size) >= MIN_SIZE:
            yield picture


def clips(motion: str) -> Iterator[Clip]:
    for seed in itertools.count():
        clip = make_clip(seed, "held-out")
        if clip.kind == motion and min(clip.frames[0].size) >= MIN_SIZE:
            yield clip


def main() -> None:
    for folder in ("images", "clips"):
        (EXAMPLES / folder).mkdir(exist_ok=True)
    for kind, count in KINDS.items():
        for picture in itertools.islice(pictures(kind), count):
            picture.image.save(EXAMPLES / "images" / file_name(picture.caption, "png"), optimize=True)
    for motion in MOTIONS:
        clip = next(clips(motion))
        first, *others = clip.frames
        path = EXAMPLES / "clips" / file_name(clip.caption, "gif")
        first.save(path, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)


def file_name(caption: str, suffix: str) -> str:
    return f"{caption.replace(' ', '-')}.{suffix}"


if __name__ == "__main__":
    main()
