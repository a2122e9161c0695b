"""The official ``openai`` client against the server, unchanged; and the shape of what it reads."""

from __future__ import annotations

import asyncio
import tracemalloc
from urllib.parse import quote

import openai
import pytest

from gitfast.serve.body import decode_data_uri

from support.serving import IMAGES, SQUARES, assert_error, chat_body, chat_messages, data_uri, events_of

QUESTIONS = ["how many squares are there?", "what color are the squares?"]


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models(api):
    (found,) = api.models.list().data
    assert (found.id, found.object, found.owned_by) == ("git-tiny", "model", "gitfast")


def test_caption(api, model):
    done = api.chat.completions.create(model="git-tiny", messages=chat_messages(SQUARES))
    (choice,) = done.choices
    assert choice.message.content == model.caption(SQUARES).text == "five red squares"
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "stop", None)
    usage = done.usage
    assert usage.prompt_tokens == model.config.num_image_tokens + 1
    assert usage.completion_tokens == len(model.caption(SQUARES).token_ids)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_asks_for_a_caption(api, text):
    done = api.chat.completions.create(model="git-tiny", messages=chat_messages(SQUARES, text))
    assert done.choices[0].message.content == "five red squares"


def test_questions_share_an_encoding(server, api, model):
    image = IMAGES[2].read_bytes() + b"another file"  # not seen before
    before = server.metric("gitfast_engine_encoded_images_total")
    done = api.chat.completions.create(model="git-tiny", messages=chat_messages(image, *QUESTIONS))
    assert [c.message.content for c in done.choices] == [r.text for r in model.answer(IMAGES[2], QUESTIONS)]
    assert before > 0
    assert server.metric("gitfast_engine_encoded_images_total") <= before + 1


def test_a_question_in_a_string_of_its_own(api, model):
    messages = [*chat_messages(SQUARES), {"role": "user", "content": QUESTIONS[0]}]
    done = api.chat.completions.create(model="git-tiny", messages=messages)
    assert [c.message.content for c in done.choices] == [model.answer(SQUARES, QUESTIONS[0]).text]


def test_several_images(api, model):
    content = [part for image in IMAGES[:3] for part in chat_messages(image)[0]["content"]]
    done = api.chat.completions.create(model="git-tiny", messages=[{"role": "user", "content": content}])
    assert [c.message.content for c in done.choices] == [r.text for r in model.caption(IMAGES[:3])]
    assert [c.index for c in done.choices] == [0, 1, 2]


def test_stream(api, model):
    stream = api.chat.completions.create(model="git-tiny", messages=chat_messages(SQUARES), stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
    assert pieces == list(model.stream(SQUARES))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({c.id for c in chunks}) == 1


def test_stream_of_several_questions(api, model):
    messages = chat_messages(SQUARES, *QUESTIONS)
    texts, ends = ["", ""], [None, None]
    for chunk in api.chat.completions.create(model="git-tiny", messages=messages, stream=True, logprobs=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [r.text for r in model.answer(SQUARES, QUESTIONS)]
    assert ends == ["stop", "stop"]


def test_the_stream_itself(client):
    body = chat_body(stream=True, stream_options={"include_usage": True}, logprobs=True)
    response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = events_of(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
    last = chunks[-1]["choices"][0]
    assert (last["delta"], last["finish_reason"], len(last["logprobs"]["content"])) == ({}, "stop", 4)


def test_several_choices_in_a_stream(client, model):
    response = client.post("/v1/chat/completions", json=chat_body(stream=True, n=3))
    texts = {}
    for event in events_of(response.text):
        choice = event["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
    best = model.caption(SQUARES, num_beams=3, num_return_sequences=3)
    assert [texts[i] for i in range(3)] == [best.text, *(other.text for other in best.alternatives)]


def test_n_best(api, model):
    done = api.chat.completions.create(model="git-tiny", messages=chat_messages(SQUARES), n=3)
    best = model.caption(SQUARES, num_beams=3, num_return_sequences=3)
    assert [c.message.content for c in done.choices] == [best.text, *(other.text for other in best.alternatives)]


def test_max_tokens(api):
    for name in ("max_tokens", "max_completion_tokens"):
        done = api.chat.completions.create(model="git-tiny", messages=chat_messages(SQUARES), **{name: 2})
        (choice,) = done.choices
        assert (choice.message.content, choice.finish_reason) == ("five red", "length")


def test_sampling_follows_its_seed(api, model):
    def draw(seed):
        options = {"temperature": 2.0, "top_p": 0.9, "seed": seed, "n": 4}
        done = api.chat.completions.create(model="git-tiny", messages=chat_messages(IMAGES[1]), **options)
        return [c.message.content for c in done.choices]

    drawn = draw(5)
    options = {"do_sample": True, "temperature": 2.0, "top_p": 0.9, "seed": 5, "num_return_sequences": 4}
    expected = model.caption(IMAGES[1], **options)
    assert drawn == draw(5) == [expected.text, *(other.text for other in expected.alternatives)]
    assert any(draw(seed) != drawn for seed in range(6, 12))
    assert draw(-1) == draw(-1)


def test_logprobs(api, model):
    done = api.chat.completions.create(model="git-tiny", messages=chat_messages(SQUARES), logprobs=True)
    content = done.choices[0].logprobs.content
    result = model.caption(SQUARES)
    assert [t.logprob for t in content] == pytest.approx(result.token_logprobs)
    assert [t.token for t in content[:3]] == ["five", "red", "squares"]
    assert bytes(content[0].bytes) == b"five"


def test_the_asynchronous_client(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api:
            one = api.chat.completions.create(model="git-tiny", messages=chat_messages(SQUARES))
            return await asyncio.gather(*[one, *(api.models.list() for _ in range(3))])

    assert asyncio.run(ask())[0].choices[0].message.content == "five red squares"


def test_errors_are_the_clients_own(api):
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="gpt-4o", messages=chat_messages(SQUARES))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as damaged:
        api.chat.completions.create(model="git-tiny", messages=chat_messages(b"no image"))
    assert damaged.value.code == "invalid_image"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": []}, "tools"),
        ({"stop": "a"}, "stop"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 513}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "be brief"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "no image"}]}, "messages"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_arguments_are_refused_by_name(client, more, param):
    error = assert_error(client.post("/v1/chat/completions", json=chat_body() | more), 400)
    assert error["param"] == param
    if param is not None:
        assert error["message"].startswith(param)


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed", "max_tokens", "n", "logprobs", "stream"])
def test_null_means_not_given(client, name):
    response = client.post("/v1/chat/completions", json=chat_body(**{name: None}))
    assert response.json()["choices"][0]["message"]["content"] == "five red squares"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png,plain",
        "data:text/html;base64,aGk=",
        "data:image/png;base64,@@@@",
        "data:image/png;base64,",
        "",
    ],
)
def test_images_that_are_none(client, url):
    error = assert_error(client.post("/v1/chat/completions", json=chat_body(url)), 400)
    assert error["param"].startswith(("messages[0].content[0].image_url.url", "image[0]"))


def test_a_data_uri_with_parameters(client):
    url = data_uri(SQUARES).replace(";base64", ";charset=utf-8;base64")
    response = client.post("/v1/chat/completions", json=chat_body(url))
    assert response.json()["choices"][0]["message"]["content"] == "five red squares"


def test_an_escaped_data_uri(client):
    head, _, data = data_uri(SQUARES).partition(",")
    assert quote(data, safe="") != data
    response = client.post("/v1/chat/completions", json=chat_body(f"{head},{quote(data, safe='')}"))
    assert response.json()["choices"][0]["message"]["content"] == "five red squares"


def test_a_data_uri_of_escapes_costs_no_more_than_its_bytes():
    uri = "data:image/png;base64," + "%2B" * 1_000_000
    tracemalloc.start()
    try:
        decode_data_uri(uri, "image")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(uri)
    finally:
        tracemalloc.stop()


def test_too_much(client):
    part = chat_messages(SQUARES)[0]["content"][0]
    many = [{"role": "user", "content": [part] * 17}]
    assert (
        "at most 16 images"
        in assert_error(client.post("/v1/chat/completions", json=chat_body(messages=many)), 400)["message"]
    )
    rows = [{"role": "user", "content": [part] * 16 + [{"type": "text", "text": "a?"}] * 4}]
    body = chat_body(messages=rows, n=8)
    assert "at most 256 sequences" in assert_error(client.post("/v1/chat/completions", json=body), 400)["message"]
