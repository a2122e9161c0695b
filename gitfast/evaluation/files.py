"""Read captions, references, questions and answers: COCO JSON, VQA JSON, JSON lines, CSV.

Rows of JSON lines and CSV name their image by ``image_id``, ``id``, ``file_name`` or ``image``, and hold one text
under ``caption`` or ``text``, or several under ``captions`` or ``references`` (lists; JSON only). Image ids are
compared as text, so that 42 in one file is "42" in another.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gitfast.checkpoints.files import read_bytes
from gitfast.errors import EvaluationError

_ID_FIELDS = ("image_id", "id", "file_name", "image")
_TEXT_FIELDS = ("caption", "text")
_TEXTS_FIELDS = ("captions", "references", "reference_strs")  # the last is TextCaps'
_MAX_BYTES = 1 << 30  # COCO's largest annotation file has 0.1 GB


@dataclass(frozen=True, kw_only=True)
class References:
    """Reference captions by image id, and the images' file names where the file has them."""

    texts: Mapping[str, list[str]]
    file_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a VQA data set, with the annotators' answers and the kind of question where it is given."""

    image_id: str
    text: str
    answers: list[str]
    kind: str | None = None


def read_references(path: str | Path) -> References:
    """Read reference captions, several per image.

    Raises:
        EvaluationError: the file cannot be read, or a row of it has no image or no text; the message names both.
    """
    path = Path(path)
    document = _read(path)
    if isinstance(document, dict):
        images = _list_of(document, "images", path) if "images" in document else []
        names = dict(_file_name_of(image, f"{path}: images: row {i + 1}") for i, image in enumerate(images))
        rows = _rows_of(document, path)
    else:
        names, rows = {}, document
    texts: dict[str, list[str]] = {image: [] for image in names}
    for i, row in enumerate(rows):
        image = _image_of(row, f"{path}: row {i + 1}")
        texts.setdefault(image, []).extend(_texts_of(row, f"{path}: row {i + 1}"))
        if isinstance(name := row.get("file_name") or row.get("image"), str):
            names.setdefault(image, name)
    texts = {image: found for image, found in texts.items() if found}
    if not texts:
        raise EvaluationError(f"{path}: expected captions of at least one image, got none")
    return References(texts=texts, file_names={image: name for image, name in names.items() if image in texts})


def read_captions(path: str | Path) -> dict[str, str]:
    """Read one caption per image.

    Raises:
        EvaluationError: as ``read_references``; also for a second caption of one image.
    """
    path = Path(path)
    document = _read(path)
    rows = _rows_of(document, path)
    captions: dict[str, str] = {}
    for i, row in enumerate(rows):
        where = f"{path}: row {i + 1}"
        image, texts = _image_of(row, where), _texts_of(row, where)
        if len(texts) != 1:
            raise EvaluationError(f"{where}: expected one caption of image {image}, got {len(texts)}")
        if image in captions:
            raise EvaluationError(f"{where}: a second caption of image {image}")
        captions[image] = texts[0]
    return captions


def read_questions(annotations: str | Path, questions: str | Path | None = None) -> dict[str, Question]:
    """Read a VQA data set by question id.

    Args:
        annotations: VQAv2's annotation file (``annotations`` with ``answers``), or rows with ``question_id``,
            ``image_id``, ``question`` and ``answers``.
        questions: VQAv2's question file, where the texts are not in ``annotations``.

    Raises:
        EvaluationError: a file cannot be read, or a question has no id, text or answers; the message names it.
    """
    path = Path(annotations)
    document = _read(path)
    rows = _rows_of(document, path)
    texts: dict[str, dict[str, Any]] = {}
    if questions is not None:
        asked = _read(Path(questions))
        for row in _list_of(asked, "questions", Path(questions)) if isinstance(asked, dict) else asked:
            texts[_text_id(row, "question_id", str(questions))] = row
    found: dict[str, Question] = {}
    for i, row in enumerate(rows):
        where = f"{path}: row {i + 1}"
        question_id = _text_id(row, "question_id", where)
        both = texts.get(question_id, {}) | row
        if not isinstance(both.get("question", ""), str):
            raise EvaluationError(f"{where}: question: expected text, got {both['question']!r:.100}")
        if not isinstance(kind := both.get("answer_type"), (str, type(None))):
            raise EvaluationError(f"{where}: answer_type: expected text, got {kind!r:.100}")
        found[question_id] = Question(
            image_id=_image_of(both, where),
            text=both.get("question", ""),
            answers=_answers_of(row, where),
            kind=kind,
        )
    if not found:
        raise EvaluationError(f"{path}: expected at least one question, got none")
    return found


def read_answers(path: str | Path) -> dict[str, str]:
    """Read one answer per question id, as VQA result files have them: ``question_id`` and ``answer``.

    Raises:
        EvaluationError: as ``read_captions``.
    """
    path = Path(path)
    document = _read(path)
    rows = _rows_of(document, path)
    answers: dict[str, str] = {}
    for i, row in enumerate(rows):
        where = f"{path}: row {i + 1}"
        question_id, answer = _text_id(row, "question_id", where), row.get("answer", row.get("text"))
        if not isinstance(answer, str):
            raise EvaluationError(f"{where}: answer: expected text, got {answer!r:.100}")
        if question_id in answers:
            raise EvaluationError(f"{where}: a second answer to question {question_id}")
        answers[question_id] = answer
    return answers


def _read(path: Path) -> dict[str, Any] | list[dict[str, Any]]:
    """Read a JSON document, or the rows of JSON lines or CSV, by the file's suffix."""
    try:
        text = read_bytes(path, _MAX_BYTES, EvaluationError).decode("utf-8-sig")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: expected UTF-8: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise EvaluationError(f"{path}: {error}") from error
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return list(_json_lines(text, path))
    document = _json(text, str(path))
    if not isinstance(document, (dict, list)):
        raise EvaluationError(f"{path}: expected a JSON object or list, got {type(document).__name__}")
    return document


def _json_lines(text: str, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = _json(line, f"{path}: line {number}")
            if not isinstance(row, dict):
                raise EvaluationError(f"{path}: line {number}: expected a JSON object, got {type(row).__name__}")
            yield row


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where}: not valid JSON: {error}") from error


def _rows_of(document: dict[str, Any] | list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return the rows of a document: ``annotations`` in COCO and VQAv2, ``data`` in TextCaps and TextVQA."""
    if isinstance(document, list):
        return document
    return _list_of(document, "data" if "data" in document and "annotations" not in document else "annotations", path)


def _list_of(document: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    rows = document.get(name)
    if not isinstance(rows, list):
        raise EvaluationError(f"{path}: {name}: expected a list, got {type(rows).__name__}")
    return rows


def _text_id(row: Any, name: str, where: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise EvaluationError(f"{where}: {name}: expected an id, got {value!r:.100}")
    return str(value)


def _file_name_of(image: Any, where: str) -> tuple[str, str]:
    """Return the id and the file name of a row of COCO's ``images``."""
    image_id = _text_id(image, "id", where)
    if not isinstance(name := image.get("file_name"), str):
        raise EvaluationError(f"{where}: file_name: expected text, got {name!r:.100}")
    return image_id, name


def _image_of(row: Any, where: str) -> str:
    if not isinstance(row, dict):
        raise EvaluationError(f"{where}: expected an object, got {type(row).__name__}")
    for name in _ID_FIELDS:
        if row.get(name) not in (None, ""):
            return _text_id(row, name, where)
    raise EvaluationError(
        f"{where}: expected one of {', '.join(_ID_FIELDS)}, got {', '.join(map(str, row))[:200] or 'none'}"
    )


def _texts_of(row: dict[str, Any], where: str) -> list[str]:
    for name in _TEXTS_FIELDS:
        if isinstance(texts := row.get(name), list):
            if not all(isinstance(text, str) for text in texts):
                raise EvaluationError(f"{where}: {name}: expected a list of texts")
            return texts
    for name in _TEXT_FIELDS:
        if isinstance(text := row.get(name), str):
            return [text]
    raise EvaluationError(f"{where}: expected a text under {', '.join((*_TEXT_FIELDS, *_TEXTS_FIELDS))}")


def _answers_of(row: dict[str, Any], where: str) -> list[str]:
    """Return the annotators' answers: texts, or objects with ``answer``; a single ``answer`` is one annotator's."""
    answers = row.get("answers", [row["answer"]] if "answer" in row else None)
    given = answers if isinstance(answers, list) else []
    texts: list[Any] = [answer.get("answer") if isinstance(answer, dict) else answer for answer in given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise EvaluationError(f"{where}: answers: expected a list of texts, got {answers!r:.100}")
    return texts
