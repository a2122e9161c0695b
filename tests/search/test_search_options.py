"""Every option that cannot be gives one error that names it, what came and what was expected."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gitfast import _C
from gitfast.engines.search import native_options
from gitfast.types import GenerationOptions

from support.bounded import outcome

V, EOS = 20, 2


def make(options=None, prompts=((3,),), vocab_size=V):
    return _C.Search({"eos_token_id": EOS, **(options or {})}, prompts, vocab_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"min_new_tokens": -1}, "min_new_tokens: expected 0 to max_new_tokens (50), got -1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens: expected 0 to max_new_tokens (8), got 9"),
        ({"num_beams": 0}, "num_beams: expected 1 to 4096, got 0"),
        ({"num_beams": 5000}, "num_beams: expected 1 to 4096, got 5000"),
        ({"num_return_sequences": 0}, "num_return_sequences: expected 1 to 4096, got 0"),
        ({"num_return_sequences": 2}, "num_return_sequences: expected 1 without beams or sampling, got 2"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences: expected at most num_beams (2), got 3"),
        ({"do_sample": True, "num_beams": 2}, "do_sample: expected False with num_beams 2, got True"),
        ({"length_penalty": float("nan")}, "length_penalty: expected a finite number, got nan"),
        ({"length_penalty_form": "other"}, "length_penalty_form: expected 'transformers' or 'paper', got 'other'"),
        ({"early_stopping": "always"}, "early_stopping: expected True, False or 'never', got 'always'"),
        ({"early_stopping": 1}, "early_stopping: expected True, False or 'never', got 1"),
        ({"temperature": 0}, "temperature: expected a float32 number above 0, got 0"),
        ({"temperature": float("inf")}, "temperature: expected a float32 number above 0, got inf"),
        ({"top_k": -1}, "top_k: expected 0 (off) or more, got -1"),
        ({"top_p": 1.5}, "top_p: expected 0 to 1, got 1.5"),
        ({"min_p": -0.1}, "min_p: expected 0 to 1, got -0.1"),
        ({"seed": -1}, "seed: expected 0 to 18446744073709551615, got -1"),
        ({"repetition_penalty": -2}, "repetition_penalty: expected a float32 number above 0, got -2"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected 0 (off) or more, got -1"),
        ({"bad_words_ids": [[3], []]}, "bad_words_ids[1]: expected at least one token id, got none"),
        ({"bad_words_ids": [[3], [V]]}, "bad_words_ids[1]: token id 20 is outside the vocabulary of 20"),
        ({"suppress_tokens": [-1]}, "suppress_tokens: token id -1 is outside the vocabulary of 20"),
        ({"begin_suppress_tokens": [V]}, "begin_suppress_tokens: token id 20 is outside the vocabulary of 20"),
        ({"forced_bos_token_id": V}, "forced_bos_token_id: token id 20 is outside the vocabulary of 20"),
        ({"forced_eos_token_id": -3}, "forced_eos_token_id: token id -3 is outside the vocabulary of 20"),
        ({"eos_token_id": V}, "eos_token_id: token id 20 is outside the vocabulary of 20"),
        ({"eos_token_id": [EOS, V]}, "eos_token_id: token id 20 is outside the vocabulary of 20"),
        ({"eos_token_id": []}, "eos_token_id: expected 1 to 19 token ids, got 0"),
        ({"eos_token_id": list(range(V))}, "eos_token_id: expected 1 to 19 token ids, got 20"),
        ({"allowed_token_ids": ()}, "allowed_token_ids: expected None or at least one continuation, got none"),
        ({"allowed_token_ids": [[3], [V]]}, "allowed_token_ids[1]: token id 20 is outside the vocabulary of 20"),
        (
            {"allowed_token_ids": [[3, EOS, 4]]},
            "allowed_token_ids[0]: the end-of-sequence token 2 stands before the end",
        ),
        (
            {"allowed_token_ids": [[3, 4, 5, EOS]], "max_new_tokens": 2},
            "allowed_token_ids[0]: expected at most max_new_tokens (2) tokens, got 3",
        ),
        (
            {"allowed_token_ids": [[3]], "forced_bos_token_id": 3},
            "forced_bos_token_id: expected None with allowed_token_ids, got 3",
        ),
        (
            {"allowed_token_ids": [[3]], "forced_eos_token_id": EOS},
            f"forced_eos_token_id: expected None with allowed_token_ids, got {EOS}",
        ),
        ({"max_new_tokens": 2**40}, "max_new_tokens: expected -2147483648 to 2147483647, got 1099511627776"),
    ],
)
def test_wrong_values(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens: expected an integer, got 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens: expected an integer, got True"),
        ({"num_beams": "4"}, "num_beams: expected an integer, got '4'"),
        ({"do_sample": 1}, "do_sample: expected True or False, got 1"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"top_p": True}, "top_p: expected a number, got True"),
        ({"length_penalty": 1j}, "length_penalty: expected a number, got 1j"),
        ({"suppress_tokens": 3}, "suppress_tokens: expected token ids, got 3"),
        ({"suppress_tokens": "ab"}, "suppress_tokens: expected token ids, got 'ab'"),
        ({"bad_words_ids": [3]}, "bad_words_ids[0]: expected token ids, got 3"),
        ({"bad_words_ids": [[3.0]]}, "bad_words_ids[0]: expected an integer, got 3.0"),
        ({"allowed_token_ids": [["a"]]}, "allowed_token_ids[0]: expected an integer, got 'a'"),
        ({"beams": 3}, "options: unknown option 'beams'"),
    ],
)
def test_wrong_types(options, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        make(options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[3], []], "prompts[1]: expected at least one token id, got none"),
        ([[3, V]], "prompts[0]: token id 20 is outside the vocabulary of 20"),
        ([[-1]], "prompts[0]: token id -1 is outside the vocabulary of 20"),
    ],
)
def test_wrong_prompts(prompts, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(prompts=prompts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress_tokens", range(10**9)),
        ("begin_suppress_tokens", range(10**30)),
        ("eos_token_id", range(10**9)),
        ("bad_words_ids", [range(10**9)]),
        ("bad_words_ids", [[5] * 1000] * 10_000),  # one list, many times
        ("allowed_token_ids", [[]] * 5_000_000),
        ("allowed_token_ids", np.broadcast_to(np.int32(5), (10**6, 10**6))),
        ("prompts", [[5] * 1000] * 10_000),
    ],
)
def test_ids_are_counted_as_they_are_read(name, value):
    prompts, options = (value, {}) if name == "prompts" else ([[3]], {name: value})
    ended = outcome(make, options, prompts)
    assert (type(ended), str(ended)) == (ValueError, f"{name}: expected at most 4194304 token ids")


def test_as_many_ids_as_are_read():
    assert make({"suppress_tokens": [5] * 4_194_304, "bad_words_ids": [[5] * 4, [6] * 4_194_300]}).num_rows == 1


def test_vocabulary_of_one():
    with pytest.raises(ValueError, match="vocab_size: expected at least 2, got 1"):
        make({"eos_token_id": 0}, [[0]], 1)


def test_options_of_the_engine_interface_are_all_known():
    options = native_options(GenerationOptions(), EOS)
    assert make(options).num_rows == 1
    assert options["eos_token_id"] == EOS


def test_numpy_values():
    options = {
        "max_new_tokens": np.int64(3),
        "temperature": np.float32(0.5),
        "suppress_tokens": np.array([4, 5]),
        "bad_words_ids": [np.array([6, 7])],
        "seed": np.uint64(2**63),
    }
    assert make(options, [np.array([3])]).num_rows == 1


def test_no_prompts():
    search = make(prompts=[])
    assert (search.done, search.results()) == (True, [])
