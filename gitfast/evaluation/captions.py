"""Score captions against reference captions: CIDEr-D, BLEU-1 to 4, ROUGE-L.

The numbers are those of the COCO caption evaluation (pycocoevalcap), its habits included, since published scores have
them: the length in CIDEr-D's penalty is the number of bigrams; document frequencies come from the references of the
call, so that one image alone scores 0; ROUGE-L takes the best precision and the best recall over the references,
whichever reference each comes from; BLEU compares with the reference closest in length, the shorter one of two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from gitfast.evaluation.tokens import tokenize

NGRAM = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2
# The published program adds these so that nothing is divided by zero and no logarithm of zero is taken.
_TINY, _SMALL = 1e-15, 1e-9

Id: TypeAlias = Any  # an image's id: anything hashable
Words: TypeAlias = Sequence[str]
NgramCounts: TypeAlias = Counter[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of captions, the higher the better; 1.0 is COCO's 100.

    Attributes:
        cider: CIDEr-D, the mean over images; it goes up to 10.
        rouge_l: ROUGE-L, the mean over images.
        bleu: BLEU-1 to BLEU-4 of all captions together.
        per_image: The same for every image, by its id; BLEU there is that of one caption.
    """

    cider: float
    bleu: tuple[float, float, float, float]
    rouge_l: float
    per_image: Mapping[Id, ImageScores]

    def as_dict(self) -> dict[str, float]:
        """Return the scores of all images by the names that papers use."""
        return {"CIDEr": self.cider, **{f"BLEU-{n}": x for n, x in enumerate(self.bleu, 1)}, "ROUGE-L": self.rouge_l}


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Scores of the caption of one image."""

    cider: float
    bleu: tuple[float, float, float, float]
    rouge_l: float


def score_captions(captions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> CaptionScores:
    """Score one caption per image against the references of that image.

    Args:
        captions: The text for every image id of ``references``.
        references: One or more texts per image id. Their n-grams are what CIDEr-D weighs words by, so score a whole
            data set in one call.

    Raises:
        ValueError: an image has no caption or no reference, or there is a caption for no image; the message names them.
    """
    _check_ids(captions, references)
    words = {image: tokenize(captions[image]) for image in references}
    reference_words = {image: [tokenize(text) for text in texts] for image, texts in references.items()}
    candidates = {image: count_ngrams(tokens) for image, tokens in words.items()}
    counts = {image: [count_ngrams(tokens) for tokens in texts] for image, texts in reference_words.items()}

    cider = _cider_d(candidates, counts)
    matches = {
        image: _bleu_match(words[image], candidates[image], reference_words[image], counts[image])
        for image in references
    }
    per_image = {
        image: ImageScores(
            cider=cider[image],
            bleu=matches[image].bleu(),
            rouge_l=rouge_l(words[image], reference_words[image]),
        )
        for image in references
    }
    together = BleuMatch.sum(matches.values())
    return CaptionScores(
        cider=math.fsum(cider.values()) / len(cider),
        bleu=together.bleu(),
        rouge_l=math.fsum(image.rouge_l for image in per_image.values()) / len(per_image),
        per_image=per_image,
    )


def _check_ids(captions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> None:
    if not references:
        raise ValueError("references: expected at least one image, got none")
    if missing := [image for image in references if image not in captions]:
        raise ValueError(f"captions: none for {len(missing)} of {len(references)} images: {_some(missing)}")
    if unknown := [image for image in captions if image not in references]:
        raise ValueError(f"captions: {len(unknown)} are of images without references: {_some(unknown)}")
    if empty := [image for image, texts in references.items() if not texts]:
        raise ValueError(f"references: no text for {_some(empty)}")


def _some(ids: Sequence[Id]) -> str:
    return ", ".join(map(str, ids[:5])) + (", …" if len(ids) > 5 else "")


def count_ngrams(words: Words) -> NgramCounts:
    """Count the n-grams of 1 to 4 words."""
    counts: NgramCounts = Counter()
    for n in range(1, NGRAM + 1):
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    return counts


@dataclass(frozen=True)
class _Vector:
    """TF-IDF weights of a text's n-grams, their Euclidean norm for every n, and the number of bigrams."""

    weights: Mapping[tuple[str, ...], float]
    norms: Sequence[float]
    num_bigrams: int


def _cider_d(candidates: Mapping[Id, NgramCounts], references: Mapping[Id, Sequence[NgramCounts]]) -> dict[Id, float]:
    frequency: Counter[tuple[str, ...]] = Counter()  # images whose references contain an n-gram, by n-gram
    for texts in references.values():
        frequency.update(set().union(*texts))
    log_images = math.log(len(references))
    rarity = {ngram: log_images - math.log(count) for ngram, count in frequency.items()}

    def vector(counts: NgramCounts) -> _Vector:
        weights = {ngram: count * rarity.get(ngram, log_images) for ngram, count in counts.items()}
        squares = [0.0] * NGRAM
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
        num_words = sum(count for ngram, count in counts.items() if len(ngram) == 1)
        return _Vector(weights, [math.sqrt(x) for x in squares], max(0, num_words - 1))

    scores = {}
    for image, texts in references.items():
        candidate = vector(candidates[image])
        scores[image] = 10 * sum(_similarity(candidate, vector(text)) for text in texts) / len(texts)
    return scores


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Average the clipped cosine over n, with a penalty for another length."""
    products = [0.0] * NGRAM
    for ngram, weight in candidate.weights.items():
        if other := reference.weights.get(ngram):
            products[len(ngram) - 1] += min(weight, other) * other
    norms = zip(candidate.norms, reference.norms, strict=True)
    cosines = (x / (a * b) if a and b else x for x, (a, b) in zip(products, norms, strict=True))
    difference = candidate.num_bigrams - reference.num_bigrams
    return sum(cosines) / NGRAM * math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))


@dataclass(frozen=True)
class BleuMatch:
    """The counts of BLEU: n-grams of the candidate, those of them that a reference has, and both lengths."""

    guessed: tuple[int, ...]
    correct: tuple[int, ...]
    length: int
    reference_length: int

    @staticmethod
    def sum(matches: Iterable[BleuMatch]) -> BleuMatch:
        """Add up the counts of several captions: BLEU of a corpus is no mean of BLEUs."""
        every = list(matches)
        return BleuMatch(
            tuple(sum(column) for column in zip(*(match.guessed for match in every), strict=True)),
            tuple(sum(column) for column in zip(*(match.correct for match in every), strict=True)),
            sum(match.length for match in every),
            sum(match.reference_length for match in every),
        )

    def bleu(self) -> tuple[float, float, float, float]:
        """Compute BLEU-1 to BLEU-4."""
        ratio = (self.length + _TINY) / (self.reference_length + _SMALL)
        penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        product, scores = 1.0, []
        for n, (correct, guessed) in enumerate(zip(self.correct, self.guessed, strict=True), 1):
            product *= (correct + _TINY) / (guessed + _SMALL)
            scores.append(product ** (1 / n) * penalty)
        one, two, three, four = scores
        return one, two, three, four


def _bleu_match(
    words: Words, counts: NgramCounts, references: Sequence[Words], reference_counts: Sequence[NgramCounts]
) -> BleuMatch:
    correct = [0] * NGRAM
    for ngram, count in counts.items():
        correct[len(ngram) - 1] += min(count, max([reference.get(ngram, 0) for reference in reference_counts]))
    length = len(words)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    guessed = tuple(max(0, length - n + 1) for n in range(1, NGRAM + 1))
    return BleuMatch(guessed, tuple(correct), length, closest)


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """Compute ROUGE-L with beta 1.2 from the best precision and the best recall over the references."""
    # An empty text counts as one empty word, as in the published program.
    words, texts = words or [""], [reference or [""] for reference in references]
    common = [longest_common_subsequence(words, reference) for reference in texts]
    precision = max(common) / len(words)
    recall = max(length / len(reference) for length, reference in zip(common, texts, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def longest_common_subsequence(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence, by bits of an integer (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    mask = (1 << len(a)) - 1
    row = mask
    for word in b:
        found = row & positions.get(word, 0)
        row = (row + found | row - found) & mask
    return len(a) - row.bit_count()
