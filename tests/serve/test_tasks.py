"""The routes of the tasks give what the model gives."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import gitfast

from support.paths import EXAMPLES
from support.serving import IMAGES, SQUARES, assert_error, chat_body, data_uri, running

CLIPS = sorted((EXAMPLES / "clips").glob("*.gif"))
QUESTIONS = ["how many squares are there?", "what color are the squares?"]


def files(*images, name="image"):
    return [(name, (image.name, image.read_bytes(), "image/png")) for image in images]


def results(response):
    assert response.status_code == 200, response.text
    return response.json()["results"]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream"])
def test_a_raw_body(client, kind):
    response = client.post("/v1/caption", content=SQUARES.read_bytes(), headers={"Content-Type": kind})
    (found,) = results(response)
    assert found["text"] == "five red squares"
    assert set(response.json()["timings"]) == {"queue", "encode", "generate"}
    assert "encode;dur=" in response.headers["server-timing"]


def test_several_images(client, model):
    found = results(client.post("/v1/caption", files=files(*IMAGES)))
    assert [r["text"] for r in found] == [r.text for r in model.caption(IMAGES)]
    assert [r["score"] for r in found] == pytest.approx([r.score for r in model.caption(IMAGES)])
    assert [r["image"] for r in found] == list(range(len(IMAGES)))


def test_options_in_a_form_and_in_the_query(client, model):
    expected = model.caption(SQUARES, prompt="a red", num_beams=4, num_return_sequences=2, max_new_tokens=5)
    options = {"prompt": "a red", "num_beams": "4", "num_return_sequences": "2", "max_new_tokens": "5"}
    in_form = results(client.post("/v1/caption", files=files(SQUARES), data=options))
    raw = {"content": SQUARES.read_bytes(), "headers": {"Content-Type": "image/png"}}
    in_query = results(client.post("/v1/caption", params=options, **raw))
    assert in_form == in_query
    assert in_form[0]["text"] == expected.text
    assert [a["text"] for a in in_form[0]["alternatives"]] == [a.text for a in expected.alternatives]
    assert in_form[0]["alternatives"][0]["score"] == pytest.approx(expected.alternatives[0].score)


def test_answer(client, model):
    found = results(client.post("/v1/answer", files=files(*IMAGES[:2]), data={"question": QUESTIONS}))
    pairs = [(i, q) for i in range(2) for q in QUESTIONS]
    assert [(r["image"], r["question"]) for r in found] == pairs
    assert [r["text"] for r in found] == [model.answer(IMAGES[i], q).text for i, q in pairs]


@pytest.mark.parametrize("method", ["trie", "score"])
def test_classify(client, model, method):
    labels = ["five red squares", "a large orange square", "a cat"]
    (found,) = results(client.post("/v1/classify", files=files(SQUARES), data={"label": labels, "method": method}))
    expected = model.classify(SQUARES, labels, method=method)
    assert [x["label"] for x in found["labels"]] == [x.text for x in expected]
    assert [x["probability"] for x in found["labels"]] == pytest.approx([x.probability for x in expected])
    assert sum(x["probability"] for x in found["labels"]) == pytest.approx(1)


def test_score(client, model):
    texts = ["five red squares", "a cat"]
    (found,) = results(client.post("/v1/score", files=files(SQUARES), data={"text": texts, "normalize": "mean"}))
    expected = model.score(SQUARES, texts, normalize="mean")
    assert [x["text"] for x in found["texts"]] == texts
    assert [x["score"] for x in found["texts"]] == pytest.approx(expected)


class TestAttend:
    def test_words(self, client, model):
        (found,) = results(client.post("/v1/attend", files=files(SQUARES)))
        weights = model.attend(SQUARES, "five red squares")[:, 1:].reshape(3, 1, 8, 8)
        assert [word["text"] for word in found["words"]] == ["five", "red", "squares"]
        np.testing.assert_allclose([word["attention"] for word in found["words"]], weights, atol=1e-5)
        assert (found["text"], found["view"]) == ("five red squares", [0, 0, 1, 1])

    def test_a_text_and_a_question(self, client, model):
        options = {"text": "five", "prompt": QUESTIONS[0]}
        (found,) = results(client.post("/v1/attend", files=files(SQUARES), data=options))
        weights = model.attend(SQUARES, "five", prompt=QUESTIONS[0])[:, 1:].reshape(1, 1, 8, 8)
        np.testing.assert_allclose(found["words"][0]["attention"], weights[0], atol=1e-5)

    def test_the_view_of_a_wide_image(self, client):
        wide = io.BytesIO()
        Image.new("RGB", (256, 128), "red").save(wide, "PNG")
        response = client.post("/v1/attend", content=wide.getvalue(), headers={"Content-Type": "image/png"})
        assert results(response)[0]["view"] == [0.25, 0, 0.75, 1]


@pytest.mark.parametrize(
    ("path", "data", "param"),
    [
        ("caption", {"colour": "red"}, "colour"),
        ("caption", {"num_beams": "two"}, "num_beams"),
        ("caption", {"num_beams": "17"}, "num_beams"),
        ("caption", {"num_beams": ["2", "3"]}, "num_beams"),
        ("caption", {"num_return_sequences": "17"}, "num_return_sequences"),
        ("caption", {"max_new_tokens": "100000"}, "max_new_tokens"),
        ("caption", {"num_beams": "2", "temperature": "1"}, "num_beams"),
        ("caption", {"question": "what?"}, "question"),
        ("caption", {"max_new_tokens": "66"}, None),  # more than this model has positions
        ("answer", {}, "question"),
        ("answer", {"question": ["a?"] * 65}, "question"),
        ("answer", {"question": "red " * 100}, None),
        ("classify", {}, "label"),
        ("classify", {"label": ["a", "a"]}, None),
        ("classify", {"label": ["a"] * 1001}, "label"),
        ("classify", {"label": ["a", "b"], "method": "guess"}, "method"),
        ("classify", {"label": ["a", "b"], "top_k": "0"}, "top_k"),
        ("score", {}, "text"),
        ("score", {"text": "a", "normalize": "max"}, "normalize"),
        ("attend", {"text": ""}, "text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_that_cannot_be(client, path, data, param):
    error = assert_error(client.post(f"/v1/{path}", files=files(SQUARES), data=data), 400)
    if param is not None:
        assert error["param"] == param
        assert error["message"].startswith(param)


class TestImages:
    def test_bad_ones_are_named(self, client):
        response = client.post("/v1/caption", files=[*files(SQUARES), ("image", b"no image")])
        error = assert_error(response, 400, "invalid_image")
        assert "image[1]" in error["message"]

    def test_none(self, client):
        assert_error(client.post("/v1/caption", files=[("prompt", (None, "a"))]), 400, "missing_parameter")
        headers = {"Content-Type": "image/png"}
        assert_error(client.post("/v1/caption", content=b"", headers=headers), 400, "invalid_image")

    def test_too_many(self, client):
        assert_error(client.post("/v1/caption", files=files(*[SQUARES] * 17)), 400)

    def test_files_of_other_names(self, client):
        response = client.post("/v1/caption", files=files(SQUARES, name="picture"))
        assert assert_error(response, 400)["param"] == "picture"

    @pytest.mark.parametrize("size", [(11000, 11000), (60_000, 1)], ids=str)
    def test_too_large_ones(self, client, size):
        bomb = io.BytesIO()
        Image.new("1", size).save(bomb, "PNG")
        response = client.post("/v1/caption", content=bomb.getvalue(), headers={"Content-Type": "image/png"})
        assert f"{size[0]} x {size[1]} pixels" in assert_error(response, 400, "invalid_image")["message"]

    def test_truncated_ones(self, client):
        data = SQUARES.read_bytes()[:-200]
        response = client.post("/v1/caption", content=data, headers={"Content-Type": "image/png"})
        assert_error(response, 400, "invalid_image")


@pytest.fixture(scope="module")
def video_server():
    with running(["--model", "git-tiny-video"]) as server, server.client() as found:
        yield found


@pytest.fixture(scope="module")
def video_model():
    return gitfast.load("git-tiny-video")


class TestClips:
    def test_the_model_says_so(self, video_server):
        assert video_server.get("/v1/models").json()["data"][0]["reads"] == "clips"

    def test_captions(self, video_server, video_model):
        found = results(video_server.post("/v1/caption", files=files(*CLIPS, name="clip")))
        captions = ["".join(video_model.stream(str(clip))) for clip in CLIPS]
        assert [r["text"] for r in found] == captions

    @pytest.mark.parametrize("part", ["image_url", "video_url"])
    def test_chat(self, video_server, video_model, part):
        content = [{"type": part, part: {"url": data_uri(CLIPS[0], "image/gif")}}]
        body = chat_body(model="git-tiny-video", messages=[{"role": "user", "content": content}])
        found = video_server.post("/v1/chat/completions", json=body).json()
        assert found["choices"][0]["message"]["content"] == "".join(video_model.stream(str(CLIPS[0])))

    def test_attention_has_frames(self, video_server, video_model):
        (found,) = results(video_server.post("/v1/attend", files=files(CLIPS[0], name="clip")))
        shape = np.shape(found["words"][0]["attention"])
        assert (shape[0], found["view"]) == (video_model.config.num_image_with_embedding, None)

    def test_a_damaged_one(self, video_server):
        response = video_server.post("/v1/caption", files=[("clip", b"GIF89a and no more")])
        assert_error(response, 400, "invalid_image")


def test_a_clip_part_for_a_model_of_images(client):
    content = [{"type": "video_url", "video_url": {"url": data_uri(CLIPS[0], "image/gif")}}]
    response = client.post("/v1/chat/completions", json=chat_body(messages=[{"role": "user", "content": content}]))
    assert "reads images, not clips" in assert_error(response, 400)["message"]
