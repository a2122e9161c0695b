"""Draw held-out pictures with their captions and questions: ``python examples/train_tiny/held_out.py FOLDER [COUNT]``.

Writes PNG files, ``captions.jsonl`` and ``questions.jsonl``, as ``gitfast evaluate`` reads them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pictures import make_picture

DEFAULT_COUNT = 200


def write_data_set(folder: Path, count: int) -> None:
    """Write ``count`` pictures of combinations that are in no training picture."""
    folder.mkdir(parents=True, exist_ok=True)
    captions, questions = [], []
    for seed in range(count):
        picture = make_picture(seed, "held-out")
        name = f"{seed:06}.png"
        picture.image.save(folder / name)
        captions.append({"file_name": name, "captions": [picture.caption]})
        for i, (question, answer) in enumerate(picture.questions):
            row = {"question_id": f"{seed}-{i}", "file_name": name, "question": question, "answer": answer}
            questions.append(row | {"answer_type": picture.kind})
    for file, rows in (("captions.jsonl", captions), ("questions.jsonl", questions)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_data_set(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_COUNT)
