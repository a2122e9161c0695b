"""Classification by generation: the probability that the model would write each of the given texts.

Every label is scored as the model's answer, all of them over the same image prefix. Two distributions can be made of
the scores. "score" compares whole labels: p(label) / sum of p. "trie" is the distribution of decoding constrained to
the labels, as in the GIT paper: at every token the probability is shared among the labels' tokens that may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from gitfast.errors import ArgumentError
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.pipeline.options import Batching
from gitfast.results import Label

Method = Literal["trie", "score"]


def encode_labels(labels: Sequence[str], tokenizer: Tokenizer, eos: int, batching: Batching) -> list[list[int]]:
    """Encode every label to token ids, the end-of-sequence token behind them.

    Raises:
        ArgumentError: no labels, one without tokens, or two of the same tokens (case and accents may not count).
        CancelledError, DeadlineError: by ``batching.cancel``, between labels.
    """
    if not labels:
        raise ArgumentError("labels: expected at least one text, got none")
    seen: dict[tuple[int, ...], int] = {}
    encoded = []
    for index, label in enumerate(batching.polled(labels)):
        ids = [*tokenizer.encode(label), eos]
        if len(ids) == 1:
            raise ArgumentError(f"labels[{index}]: {label!r} has no tokens")
        first = seen.setdefault(tuple(ids), index)
        if first != index:
            raise ArgumentError(f"labels[{index}]: {label!r} has the same tokens as labels[{first}], {labels[first]!r}")
        encoded.append(ids)
    return encoded


def rank_labels(
    labels: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    logprobs: Sequence[np.ndarray],
    method: Method,
) -> list[Label]:
    """Rank labels, most probable first; ``logprobs[i]`` belong to ``token_ids[i]``, each given the tokens before."""
    scores = np.array([x.sum(dtype=np.float64) for x in logprobs])
    probabilities = _softmax(scores) if method == "score" else _trie_probabilities(token_ids, logprobs)
    return [
        Label(text=labels[i], index=int(i), probability=float(probabilities[i]), score=float(scores[i]))
        for i in np.argsort(-probabilities, kind="stable")
    ]


def _trie_probabilities(token_ids: Sequence[Sequence[int]], logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply over the tokens of each label its softmax among the tokens that may stand there."""
    # Every child of a trie node is the next token of some label, so the labels' scores hold all that is needed.
    children: dict[tuple[int, ...], dict[int, float]] = {}
    for ids, values in zip(token_ids, logprobs, strict=True):
        for i, token in enumerate(ids):
            children.setdefault(tuple(ids[:i]), {})[token] = float(values[i])
    totals = {node: np.logaddexp.reduce(list(values.values())) for node, values in children.items()}
    return np.array(
        [
            np.exp(sum(children[tuple(ids[:i])][token] - totals[tuple(ids[:i])] for i, token in enumerate(ids)))
            for ids in token_ids
        ]
    )


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
