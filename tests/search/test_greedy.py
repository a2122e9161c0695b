"""Greedy search over made-up logits."""

from __future__ import annotations

import numpy as np
import pytest

from gitfast import _C

EOS = 3


def run(options, prompts, table, vocab_size):
    """Logits that depend on the last token alone: ``table`` (V, V)."""
    search = _C.Search({"eos_token_id": EOS, **options}, prompts, vocab_size)
    last = [p[-1] for p in prompts]
    while not search.done:
        search.advance(np.ascontiguousarray(table[last]))
        last = search.tokens
    return search.results()


def test_greedy_follows_the_largest_logit_until_eos():
    table = np.full((5, 5), -5.0, np.float32)
    table[0, 1] = table[1, 2] = table[2, EOS] = table[4, 4] = 5.0
    (stopped,), (cut,) = run({"max_new_tokens": 4}, [[0], [4]], table, 5)
    assert stopped[0] == [1, 2, EOS]
    assert stopped[3] == "stop"
    assert cut[0] == [4, 4, 4, 4]
    assert cut[3] == "length"
    log_probs = table[0] - np.log(np.exp(table[0].astype(float)).sum())
    assert stopped[1] == pytest.approx([log_probs[1]] * 3, abs=1e-6)
    assert stopped[2] == pytest.approx(3 * log_probs[1], abs=1e-6)


def test_min_new_tokens_holds_eos_back():
    table = np.zeros((5, 5), np.float32)
    table[:, EOS], table[:, 1] = 5.0, 1.0
    tokens, _, _, reason = run({"max_new_tokens": 6, "min_new_tokens": 3}, [[0]], table, 5)[0][0]
    assert (tokens, reason) == ([1, 1, 1, EOS], "stop")
