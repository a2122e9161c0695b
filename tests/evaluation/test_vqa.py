"""Scores of answers, as the official program gives them."""

from __future__ import annotations

import pytest

from gitfast.evaluation import normalize_answer, score_answers, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("don't", "don't"),
        ("wouldntve", "wouldntve"),  # two apostrophes missing: not in the official list
        ("wouldn'tve", "wouldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),  # the official list has it the wrong way round
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("st. louis.", "st louis"),
        ("well-known", "well known"),
        (" a\ncat\t", "cat"),
        ("", ""),
    ],
)
def test_normalized(answer, normal):
    assert normalize_answer(answer) == normal


def test_no_more_than_32_periods_are_removed():
    assert normalize_answer("a" + "." * 40) == "a" + "." * 8


@pytest.mark.parametrize(("equal", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_by_agreement(equal, accuracy):
    """Each annotator is left out once: three equal answers give 7/10 * 1 + 3/10 * 2/3."""
    assert vqa_accuracy("yes", ["yes"] * equal + ["no"] * (10 - equal)) == pytest.approx(accuracy)


# What the official program of March 2021 printed.
@pytest.mark.parametrize(
    ("answer", "given", "accuracy"),
    [
        ("yes", ["yes."] * 10, 0),
        ("yes", ["yes."] * 9 + ["no"], 1),
        ("yes.", ["yes."] * 10, 1),
        ("Yes", ["yes"] * 10, 0),
        ("yes\n", ["\tyes", "yes "] * 5, 1),
        ("dog", ["a dog"] * 9 + ["dog"], 1),
        ("nokia", ["Nokia"] * 8 + ["nokia"] * 2, 1),
        ("2", ["two", "2", "two", "three", "4"] * 2, 1),
        ("none", ["none", "0", "nothing"] * 3, 1),
        ("dont know", ["don't know", "dont know", "do not know", "no", "yes"] * 2, 1),
        ("t - shirt", ["t-shirt"] * 5 + ["shirt"] * 5, 1),
        ("t - shirt", ["t-shirt"] * 10, 0),
        ("1,000", ["1000", "1,000", "1.000"], 0.4444444444444444),
    ],
)
def test_answers_are_normalised_only_where_annotators_differ(answer, given, accuracy):
    assert vqa_accuracy(answer, given) == pytest.approx(accuracy)


def test_scores_of_a_data_set():
    annotations = {"1": ["red"] * 10, "2": ["2"] * 10, "3": ["left"]}
    scores = score_answers({"1": "red", "2": "three", "3": "the left"}, annotations, {"1": "color", "2": "number"})
    assert scores.per_question == {"1": 1, "2": 0, "3": 1}
    assert scores.accuracy == scores.exact_match == pytest.approx(2 / 3)
    assert scores.by_kind == {"color": 1, "number": 0}


def test_missing_answers_are_named():
    with pytest.raises(ValueError, match="none to 1 of 2 questions, such as 7"):
        score_answers({"1": "a"}, {"1": ["a"], "7": ["b"]})
    with pytest.raises(ValueError, match="at least one question"):
        score_answers({}, {})
