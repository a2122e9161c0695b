"""``cancel=`` of the tasks: each ends early, by whoever holds its token or by its time."""

from __future__ import annotations

import pytest

import gitfast

from support.tiny_checkpoint import random_image

IMAGE = random_image(0)
TASKS = {
    "caption": lambda model, cancel: model.caption(IMAGE, cancel=cancel),
    "answer": lambda model, cancel: model.answer(IMAGE, "how many?", cancel=cancel),
    "encode": lambda model, cancel: model.encode(IMAGE, cancel=cancel),
    "classify": lambda model, cancel: model.classify(IMAGE, ["red", "blue"], cancel=cancel),
    "score": lambda model, cancel: model.score(IMAGE, "red", cancel=cancel),
    "stream": lambda model, cancel: list(model.stream(IMAGE, cancel=cancel)),
    "caption_each": lambda model, cancel: list(model.caption_each([IMAGE], cancel=cancel)),
    "answer_each": lambda model, cancel: list(model.answer_each([IMAGE], "how many?", cancel=cancel)),
    "attend": lambda model, cancel: list(model.attend(IMAGE, "red", cancel=cancel)),
}


@pytest.fixture(scope="module", params=["cpu", "reference"])
def model(request, checkpoint_folder):
    return gitfast.load(checkpoint_folder, engine=request.param)


@pytest.mark.parametrize("task", TASKS)
class TestTasks:
    def test_cancelled(self, model, task):
        token = gitfast.CancelToken()
        TASKS[task](model, token)
        token.cancel()
        with pytest.raises(gitfast.CancelledError):
            TASKS[task](model, token)

    def test_out_of_time(self, model, task):
        with pytest.raises(gitfast.DeadlineError):
            TASKS[task](model, gitfast.CancelToken(timeout=0))

    def test_no_token(self, model, task):
        TASKS[task](model, None)
        with pytest.raises(gitfast.GitfastError, match="cancel: expected a"):
            TASKS[task](model, "soon")


def test_text_over_a_prefix(model):
    """Encoded before, only the text is left to be cancelled."""
    prefix, token = model.encode(IMAGE), gitfast.CancelToken()
    token.cancel()
    with pytest.raises(gitfast.CancelledError):
        model.caption(prefix, cancel=token)
    with pytest.raises(gitfast.CancelledError):
        model.score(prefix, "red", cancel=token)


LISTS = {
    "answer": lambda model, texts, cancel: model.answer(IMAGE, texts, cancel=cancel),
    "answer_each": lambda model, texts, cancel: model.answer_each([IMAGE], texts, cancel=cancel),
    "classify": lambda model, texts, cancel: model.classify(IMAGE, texts, cancel=cancel),
    "score": lambda model, texts, cancel: model.score(IMAGE, texts, cancel=cancel),
    "allowed": lambda model, texts, cancel: model.caption(IMAGE, allowed_texts=texts, cancel=cancel),
}


@pytest.mark.parametrize("task", LISTS)
def test_lists_of_texts(model, task, monkeypatch):
    """Ended while they are split into tokens, one by one: a million takes half a minute."""
    tokenizer = model.processor.tokenizer
    token, encode, encoded = gitfast.CancelToken(), tokenizer.encode, []

    def slow(text):
        encoded.append(text)
        if len(encoded) == 3:
            token.cancel()
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", slow)
    with pytest.raises(gitfast.CancelledError):
        LISTS[task](model, ["red " * number for number in range(1, 100)], token)
    assert len(encoded) == 3
