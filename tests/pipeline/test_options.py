"""Options of the tasks, and the search options they become."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import gitfast
from gitfast.errors import ArgumentError
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.pipeline.options import (
    ReadingOptions,
    StreamOptions,
    TaskOptions,
    check_options,
    make_batching,
    make_options,
)
from gitfast.types import GenerationOptions


@pytest.fixture(scope="module")
def model() -> gitfast.Model:
    return gitfast.load("git-tiny", num_threads=1)


@pytest.fixture(scope="module")
def tokenizer(checkpoint_folder) -> Tokenizer:
    return Tokenizer.from_folder(checkpoint_folder)


def test_the_defaults_are_those_of_the_dataclass(tokenizer):
    assert make_options({}, tokenizer, room=1000) == GenerationOptions()


def test_every_field_is_an_option(tokenizer):
    declared = StreamOptions.__annotations__.keys() - ReadingOptions.__annotations__.keys()
    assert declared - {"preset", "allowed_texts"} == {field.name for field in dataclasses.fields(GenerationOptions)}
    for field in dataclasses.fields(GenerationOptions):
        value: object = 7 if field.name in ("max_new_tokens", "min_new_tokens", "num_beams") else object()
        assert getattr(make_options({field.name: value}, tokenizer, room=1000), field.name) is value


@pytest.mark.parametrize(("room", "length"), [(1000, 50), (50, 50), (49, 49), (1, 1), (0, 1), (-5, 1)])
def test_the_default_length_leaves_room_for_the_prompt(tokenizer, room, length):
    assert make_options({}, tokenizer, room=room).max_new_tokens == length
    assert make_options({"max_new_tokens": 7}, tokenizer, room=room).max_new_tokens == 7


def test_allowed_texts_become_tokens(tokenizer):
    options = make_options({"allowed_texts": ["red square", "Red"]}, tokenizer, room=9)
    assert options.allowed_token_ids == [tokenizer.encode("red square"), tokenizer.encode("red")]
    with pytest.raises(ValueError, match="allowed_texts"):
        make_options({"allowed_texts": "red"}, tokenizer, room=9)


def test_unknown_names(tokenizer):
    with pytest.raises(TypeError, match=r"unknown option 'max_tokens'; did you mean 'max_new_tokens'\?"):
        make_options({"max_tokens": 5}, tokenizer, room=9)
    with pytest.raises(TypeError, match=r"unknown option 'zzz'$"):
        make_options({"zzz": 5}, tokenizer, room=9)


@pytest.mark.parametrize("name", ["max_new_tokens", "num_beams", "top_k", "seed", "no_repeat_ngram_size", "batch_size"])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_that_python_does_not_print_are_named(name, sign):
    check = make_batching if name == "batch_size" else lambda values: check_options(values, TaskOptions)
    with pytest.raises(ArgumentError, match=f"{name}: expected an integer of a few digits, got one of 16610 bits"):
        check({name: sign * 10**5000})


_HUGE = pytest.param(10**5000, id="huge")  # pytest, too, cannot print it


@pytest.mark.parametrize("value", [np.array(["raise", "paper"]), _HUGE, ["raise"], None, 5])
@pytest.mark.parametrize("name", ["on_error", "method", "normalize", "preprocess", "engine", "dtype", "prefix_dtype"])
def test_choices_are_texts_and_the_error_names_them(name, value, model):
    picture = np.zeros((8, 8, 3), np.uint8)
    calls = {
        "on_error": lambda: model.caption(picture, on_error=value),
        "method": lambda: model.classify(picture, ["red", "blue"], method=value),
        "normalize": lambda: model.score(picture, "red", normalize=value),
    }
    with pytest.raises(ArgumentError, match=f"^{name}: expected '.*' or '.*', got ") as raised:
        calls.get(name, lambda: gitfast.load("git-tiny", **{name: value}))()
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("value", [np.array(["never", "paper"]), _HUGE, "x" * 1000, [10**5000], ["x" * 1000]])
@pytest.mark.parametrize(
    "name",
    ["length_penalty_form", "early_stopping", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
     "allowed_token_ids"],
)  # fmt: skip
def test_what_the_search_refuses_is_named_and_not_printed_whole(name, value, model):
    for options in ({name: value}, {name: [value]}):
        with pytest.raises((TypeError, ValueError), match=f"^{name}") as raised:
            model.caption(np.zeros((8, 8, 3), np.uint8), max_new_tokens=2, **options)
        assert len(str(raised.value)) < 400


class _Two:
    def __index__(self) -> int:
        return 2


def test_integers_of_any_type_are_taken(model):
    batching = make_batching(
        {"batch_size": _Two(), "workers": np.int64(2), "num_frames": _Two(), "sampling_seed": _Two()}
    )
    assert (batching.batch_size, batching.workers) == (2, 2)
    assert (batching.clips.num_frames, batching.clips.seed) == (2, 2)
    assert type(batching.workers) is int
    with pytest.raises(ArgumentError, match="sampling: expected 'uniform', 'hf', indices or a function, got"):
        make_batching({"sampling": np.array(2)})
