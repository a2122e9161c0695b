"""Let a model caption the images of a data set, or answer its questions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from gitfast.errors import EvaluationError
from gitfast.evaluation.files import Question, References
from gitfast.model import Model
from gitfast.pipeline.iterators import grouped

_BATCH = 64  # images whose questions are answered together
_COCO_ID_DIGITS = 12  # COCO_val2014_000000000042.jpg


def find_images(ids: Sequence[str], file_names: Mapping[str, str], folder: str | Path) -> dict[str, Path]:
    """Find the picture of every image id in a folder.

    A picture is found by the file name that the data set gives, else as ``{id}.jpg`` and the like, else by COCO's
    habit of ending file names in the id with leading zeros.

    Raises:
        EvaluationError: pictures are missing; the message counts and names them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    by_stem = {Path(entry.name).stem: Path(entry.path) for entry in os.scandir(folder) if entry.is_file()}
    by_number = {stem.rpartition("_")[2]: path for stem, path in by_stem.items()}
    found: dict[str, Path] = {}
    for image in ids:
        named = os.path.join(folder, file_names.get(image, image))
        if _is_within(folder, named) and os.path.isfile(named):
            found[image] = Path(named)
        elif path := by_stem.get(image) or by_number.get(image.zfill(_COCO_ID_DIGITS)):
            found[image] = path
    if missing := [image for image in ids if image not in found]:
        shown = ", ".join(file_names.get(image, image) for image in missing[:3])
        raise EvaluationError(f"{folder}: no picture for {len(missing)} of {len(ids)} images, such as {shown}")
    return found


def _is_within(folder: Path, path: str) -> bool:
    """Return whether a path leads nowhere else: file names come from data."""
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), ""))


def caption_images(
    model: Model, references: References, images: Mapping[str, Path], options: Mapping[str, Any]
) -> dict[str, str]:
    """Caption every image of ``references``; on a terminal, show how far it is."""
    ids = list(references.texts)
    results = model.caption_each((images[image] for image in ids), **options)
    shown = tqdm(zip(ids, results, strict=True), total=len(ids), unit="image", disable=None)
    return {image: result.text for image, result in shown}


def answer_questions(
    model: Model,
    questions: Mapping[str, Question],
    images: Mapping[str, Path],
    options: Mapping[str, Any],
) -> dict[str, str]:
    """Answer every question; those about one image share its encoding."""
    answers: dict[str, str] = {}
    by_image: dict[str, list[str]] = {}
    for question_id, question in questions.items():
        by_image.setdefault(question.image_id, []).append(question_id)
    progress = tqdm(total=len(questions), unit="question", disable=None)
    for batch in grouped(by_image.items(), _BATCH):
        prefixes = model.encode([images[image] for image, _ in batch])
        pairs = [(prefix, question_id) for prefix, (_, ids) in zip(prefixes, batch, strict=True) for question_id in ids]
        texts = [questions[question_id].text for _, question_id in pairs]
        results = model.answer([prefix for prefix, _ in pairs], texts, **options)
        answers.update((question_id, result.text) for (_, question_id), result in zip(pairs, results, strict=True))
        progress.update(len(pairs))
    progress.close()
    return answers
