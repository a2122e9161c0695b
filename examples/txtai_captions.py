"""A callable of the shape of txtai's Caption pipeline, for its workflows and indexes.

In txtai: ``Workflow([ImageTask(Captions("base-coco"))])``, or the rows of ``Captions.rows`` to ``Embeddings.index``.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gitfast


class Captions:
    """Captions of pictures: paths, or PIL images."""

    def __init__(self, path: str = "git-tiny", **load_options: Any) -> None:
        """Load a model; ``load_options`` are those of gitfast.load, as ``dtype="bfloat16"``."""
        self.model = gitfast.load(path, **load_options)

    def __call__(self, images: Any, **options: Any) -> Any:
        if isinstance(images, list):
            return [result.text for result in self.model.caption(images, **options)]
        return self.model.caption(images, **options).text

    def rows(self, paths: Iterable[Path]) -> Iterator[tuple[str, dict[str, str], None]]:
        """Yield (id, data, tags) of pictures that can be read, as txtai's Embeddings.index takes them, one by one."""
        paths = list(paths)
        for path, result in zip(paths, self.model.caption_each(paths, on_error="return"), strict=True):
            if result.error is None:
                yield path.name, {"text": result.text, "object": str(path)}, None


if __name__ == "__main__":
    captions = Captions()
    images = sorted((Path(__file__).parent / "images").glob("*.png"))
    print("one: ", captions(images[0]))
    print("list:", captions(images[1:3]))
    for name, data, _ in captions.rows([*images[3:], Path("missing.png")]):
        print(f"row:  {name}: {data['text']}")
