"""Classification by generation: probabilities of labels over one prefix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gitfast
from gitfast.pipeline.classification import rank_labels

EOS = 3


def logprobs_of(token_ids: list[list[int]], seed: int) -> list[np.ndarray]:
    """Log-probabilities under random next-token distributions over ten tokens, each depending on all tokens before."""
    rows: dict[tuple[int, ...], np.ndarray] = {}
    rng = np.random.default_rng(seed)
    values = []
    for ids in token_ids:
        nodes = [tuple(ids[:i]) for i in range(len(ids))]
        for node in nodes:
            if node not in rows:
                rows[node] = np.log(rng.dirichlet(np.ones(10)))
        values.append(np.array([rows[node][token] for node, token in zip(nodes, ids, strict=True)]))
    return values


def test_by_hand():
    # "4" and "4 5": after 4 the trie goes on with the end or with 5.
    ids = [[4, EOS], [4, 5, EOS], [6, EOS]]
    logprobs = [np.log([0.2, 0.1]), np.log([0.2, 0.3, 0.5]), np.log([0.6, 0.9])]
    texts = ["short", "long", "other"]
    trie = {x.text: x.probability for x in rank_labels(texts, ids, logprobs, "trie")}
    assert trie == pytest.approx({"short": 0.25 * 0.25, "long": 0.25 * 0.75, "other": 0.75})
    whole = {x.text: x.probability for x in rank_labels(texts, ids, logprobs, "score")}
    total = 0.02 + 0.03 + 0.54
    assert whole == pytest.approx({"short": 0.02 / total, "long": 0.03 / total, "other": 0.54 / total})


@given(
    labels=st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=4), min_size=1, max_size=12, unique_by=tuple),
    seed=st.integers(0, 99),
    method=st.sampled_from(["trie", "score"]),
)
def test_probabilities_sum_to_one_and_are_ordered(labels, seed, method):
    ids = [[*label, EOS] for label in labels]
    logprobs = logprobs_of(ids, seed)
    ranked = rank_labels([str(label) for label in labels], ids, logprobs, method)
    assert sum(x.probability for x in ranked) == pytest.approx(1)
    assert [x.probability for x in ranked] == sorted((x.probability for x in ranked), reverse=True)
    assert sorted(x.index for x in ranked) == list(range(len(labels)))
    for x in ranked:
        assert x.score == pytest.approx(logprobs[x.index].sum())


def test_a_thousand_labels_on_one_prefix() -> None:
    words = gitfast.load("git-tiny").processor.tokenizer.decode(range(5, 109)).split()
    words = [word for word in dict.fromkeys(words) if word.isalpha()]
    labels = [f"{a} {b}" for a, b in itertools.product(words[:40], words[-25:])]
    assert len(set(labels)) == 1000
    model = gitfast.load("git-tiny")
    before = model.engine.stats.encoded_images
    for method in ("trie", "score"):
        ranking = model.classify(np.full((64, 64, 3), 200, np.uint8), labels, method=method)
        assert len(ranking) == 1000
        assert sum(label.probability for label in ranking) == pytest.approx(1)
    assert model.engine.stats.encoded_images - before == 2
