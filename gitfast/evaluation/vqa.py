"""Score answers to questions: VQA accuracy over ten annotators, and exact match.

VQA accuracy is that of VQAv2's official evaluation, as it has been since March 2021. An answer is right in the measure
in which annotators gave it: each annotator in turn is left out, and ``min(1, n / 3)`` of the others' n equal answers
counts. Habits of the official program that change scores are kept: answers are normalised, the annotators' and the one
that is scored, only where annotators do not all say the same; no more than 32 periods are removed; the pattern that
should keep the period of a decimal looks ahead only.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Id: TypeAlias = Any  # a question's id: anything hashable

_FULL_AGREEMENT = 3  # other annotators
_MAX_PERIODS = 32  # the official program passes a flag of ``re`` where the count belongs
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(["a", "an", "the"])
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(i) for i, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(words: Sequence[str]) -> dict[str, str]:
    """Map every way to leave out one apostrophe to the full spelling."""
    spellings = {}
    for word in words:
        for i, letter in enumerate(word):
            if letter == "'":
                spellings[word[:i] + word[i + 1 :]] = word
    return spellings


_APOSTROPHES = _without_one_apostrophe(_CONTRACTIONS.split()) | {"somebody'd": "somebodyd"}


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """Scores of answers, from 0 to 1.

    Attributes:
        accuracy: Mean VQA accuracy over questions.
        exact_match: Share of normalised answers that equal the annotators' most frequent one.
        by_kind: Mean accuracy by the questions' kind, where the annotations have one.
        per_question: Accuracy of every question, by its id.
    """

    accuracy: float
    exact_match: float
    by_kind: Mapping[str, float] = field(default_factory=dict)
    per_question: Mapping[Id, float]

    def as_dict(self) -> dict[str, float]:
        """Return the scores of all questions by name."""
        return {"accuracy": self.accuracy, "exact match": self.exact_match, **self.by_kind}


def normalize_answer(answer: str) -> str:
    """Lower-case, drop punctuation and articles, write numbers up to ten as digits, and restore apostrophes."""
    return _normalize_words(_strip_punctuation(_on_one_line(answer)))


def vqa_accuracy(answer: str, annotations: Sequence[str]) -> float:
    """Score an answer, in the official way, against the answers that annotators gave."""
    return _agreement(answer, annotations)


def score_answers(
    answers: Mapping[Id, str],
    annotations: Mapping[Id, Sequence[str]],
    kinds: Mapping[Id, str] | None = None,
) -> AnswerScores:
    """Score one answer per question.

    Args:
        answers: The answer to every question id of ``annotations``.
        annotations: The annotators' answers, usually ten. A single one is taken to be right, as there is
            nobody else to agree with; the accuracy is then exact match.
        kinds: The kind of each question, such as VQAv2's ``answer_type``.

    Raises:
        ValueError: a question has no answer or no annotation; the message names it.
    """
    if not annotations:
        raise ValueError("annotations: expected at least one question, got none")
    if missing := [question for question in annotations if question not in answers]:
        raise ValueError(f"answers: none to {len(missing)} of {len(annotations)} questions, such as {missing[0]}")
    accuracies: dict[Id, float] = {}
    matches = 0
    by_kind: dict[str, list[float]] = defaultdict(list)
    for question, given in annotations.items():
        if not given:
            raise ValueError(f"annotations: no answer to question {question}")
        accuracies[question] = _agreement(answers[question], given)
        (most_frequent, _), *_ = Counter(map(normalize_answer, given)).most_common(1)
        matches += normalize_answer(answers[question]) == most_frequent
        if kinds is not None and question in kinds:
            by_kind[kinds[question]].append(accuracies[question])
    return AnswerScores(
        accuracy=math.fsum(accuracies.values()) / len(accuracies),
        exact_match=matches / len(accuracies),
        by_kind={kind: math.fsum(values) / len(values) for kind, values in sorted(by_kind.items())},
        per_question=accuracies,
    )


def _agreement(answer: str, given: Sequence[str]) -> float:
    """Average over annotators how many of the others gave the answer; a single one is right."""
    if len(given) == 1:
        return float(normalize_answer(answer) == normalize_answer(given[0]))
    answer, *others = (_on_one_line(text) for text in (answer, *given))
    if len(set(others)) > 1:
        answer, *others = map(normalize_answer, (answer, *others))
    equal = [text == answer for text in others]
    total = sum(equal)
    return math.fsum(min(1.0, (total - own) / _FULL_AGREEMENT) for own in equal) / len(equal)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    """Delete punctuation beside a space, or all of it where digits are grouped by commas; put a space elsewhere."""
    grouped = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or grouped else " ")
    return _PERIOD.sub("", stripped, count=_MAX_PERIODS)


def _normalize_words(text: str) -> str:
    numbered = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_APOSTROPHES.get(word, word) for word in numbered if word not in _ARTICLES)
