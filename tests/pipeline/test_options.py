"""Options of the tasks, and the search options they become."""

from __future__ import annotations

import dataclasses

import pytest

from gitfast.inputs.tokenizer import Tokenizer
from gitfast.pipeline.options import ReadingOptions, StreamOptions, make_options
from gitfast.types import GenerationOptions


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
