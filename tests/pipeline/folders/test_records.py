"""Records of results: lines and JSON, written and read back."""

from __future__ import annotations

import json
import math
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitfast import ImageError, Result
from gitfast.pipeline.folders.records import READ_WORDS, JsonRecords, RecordError, TextEdit, TextRecords

names = st.binary(min_size=1, max_size=20).map(os.fsdecode)
questions = st.none() | st.text(max_size=10)


def records_of(question: str | None) -> list[JsonRecords | TextRecords]:
    return [JsonRecords(), TextRecords(with_question=question is not None)]


@given(names, questions, st.text(max_size=20))
def test_a_line_says_whose_result_it_is(name, question, text):
    for records in records_of(question):
        line = records.line(name, question, Result(text=text, score=-1.0, finish_reason="stop"))
        assert b"\n" not in line
        assert records.key(line) == records.key_of(name, question)
        assert list(records.keys([line, line])) == records.keys_of([name, name], question)
        assert records.text(line) == text
        assert records.key(line) != records.key_of(name + "x", question)


def test_json_is_exact():
    name = os.fsdecode(b"a\xff\t.jpg")
    other = Result(text="b", score=-2.0)
    result = Result(text="a", score=-math.inf, finish_reason="length", alternatives=(other,))
    record = json.loads(JsonRecords().line(name, "what?", result))
    assert record == {
        "file_name": name,
        "question": "what?",
        "text": "a",
        "score": None,
        "finish_reason": "length",
        "alternatives": [{"text": "b", "score": -2.0}],
    }
    error = JsonRecords().line(name, None, Result(text="", error=ImageError("bad")))
    assert json.loads(error) == {"file_name": name, "error": "bad"}


@pytest.mark.parametrize(
    "line",
    [b"", b"notes", b"[]", b'{"text": "a"}', b'{"file_name": 5}', b'{"file_name": "a", "question": 5}', b"[" * 10**5],
)
def test_other_lines_are_no_records(line):
    good = JsonRecords().line("a", None, Result(text=""))
    with pytest.raises(RecordError):
        JsonRecords().key(line)
    with pytest.raises(RecordError):
        list(JsonRecords().keys([good, line, good]))
    with pytest.raises(RecordError):
        TextRecords(with_question=False).key(line)


def test_a_record_within_a_line_is_not_taken_for_one():
    good = JsonRecords().line("a", None, Result(text=""))
    with pytest.raises(RecordError):
        list(JsonRecords().keys([b"x" + good, good]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a red sign with the words "stop here" on it', "a red sign"),
        ("a bus with the word london on the side.", "a bus."),
        ("a shirt that says 'hello' on it, on a chair", "a shirt, on a chair"),
        ('a can with the words "co', "a can"),
        ("two dogs play with the ball", "two dogs play with the ball"),
        ("a man with the name tag", "a man"),
    ],
)
def test_words_that_a_model_claims_to_read(text, expected):
    edit = TextEdit(remove=[re.compile("|".join(READ_WORDS), re.IGNORECASE)])
    assert edit(text) == expected


def test_edits():
    edit = TextEdit(prefix="<", suffix=">", remove=[re.compile("very "), re.compile("dog")])
    assert edit("a very very big dog . Dog") == "<a big. Dog>"
    assert TextEdit(remove=[re.compile(""), re.compile("x*")])("a boxed dog") == "a bo ed dog", "of nothing, nothing"
    assert TextEdit()("a  . b") == "a  . b", "what is not asked for is not tidied"
    result = Result(text="a dog", alternatives=(Result(text="dog"),))
    assert [edit.apply(result).text, edit.apply(result).alternatives[0].text] == ["<a>", "<>"]
    bad = Result(text="", error=ImageError("bad"))
    assert edit.apply(bad) is bad
