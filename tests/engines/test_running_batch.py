"""Calls that are at work at the same time share steps; each gets what it gets alone, to the bit."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gitfast
from gitfast.engines.base import Engine
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.reference import ReferenceEngine
from gitfast.types import GenerationOptions

from support.tiers import slow
from support.tiny_model import GREEDY, PROMPTS, make_engine, make_model, random_pixels

OPTIONS = [
    GREEDY,
    GenerationOptions(max_new_tokens=17, min_new_tokens=17),
    GenerationOptions(max_new_tokens=9, num_beams=4, num_return_sequences=3, length_penalty=0.6),
    GenerationOptions(max_new_tokens=8, do_sample=True, num_return_sequences=5, seed=7),
    GenerationOptions(max_new_tokens=11, do_sample=True, top_k=9, seed=3, repetition_penalty=1.3),
    GenerationOptions(max_new_tokens=6, allowed_token_ids=[[5, 6, 7], [5, 8], [9]]),
    GenerationOptions(max_new_tokens=1),
]
LONG = GenerationOptions(max_new_tokens=30, min_new_tokens=30)


@pytest.fixture(scope="module", params=[(1, 2), (3, 1)], ids=["one lane", "lanes"])
def engine(request) -> CpuEngine:
    num_lanes, num_threads = request.param
    return make_engine(make_model(), num_lanes=num_lanes, num_threads=num_threads)


@pytest.fixture(scope="module", params=["cpu", "reference"])
def any_engine(request) -> Engine:
    return make_engine(make_model()) if request.param == "cpu" else ReferenceEngine(make_model())


@pytest.fixture(scope="module")
def prefixes(engine) -> list:
    return [*engine.encode(random_pixels(3, 3, 32, 32)), None]


def alone(engine, prefix, prompt, options):
    return engine.generate([prefix], [prompt], options)[0]


def repeat(call, *arguments, **options):
    """Call again and again, until it raises."""
    while True:
        call(*arguments, **options)


class TestCalls:
    def test_random_calls_equal_calls_alone(self, engine, prefixes):
        """Joins, leaves, cancels, errors in callbacks, rows stopped by them, encodings, scores: from six threads."""
        pixels = random_pixels(3, 3, 32, 32)
        want = {(p, r, o): alone(engine, prefixes[p], PROMPTS[r], OPTIONS[o])
                for p in range(4) for r in range(4) for o in range(len(OPTIONS))}  # fmt: skip
        scores = engine.score(prefixes, PROMPTS)
        keys = prefixes[1].keys_values(2)[0]

        def generate(rng):
            rows = [(int(rng.integers(4)), int(rng.integers(4))) for _ in range(rng.integers(1, 5))]
            option = int(rng.integers(len(OPTIONS)))
            found = engine.generate([prefixes[p] for p, _ in rows], [PROMPTS[r] for _, r in rows], OPTIONS[option])
            assert found == [want[p, r, option] for p, r in rows]

        def fail(rng):
            def callback(row, tokens):
                if rng.integers(3) == 0:
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                repeat(engine.generate, prefixes, PROMPTS, OPTIONS[int(rng.integers(len(OPTIONS)))], callback)

        def stop(rng):
            count = int(rng.integers(1, 6))
            seen: list[list[int]] = [[] for _ in PROMPTS]

            def callback(row, tokens):
                seen[row] += tokens
                return row != 1 or len(seen[1]) < count

            found = engine.generate(prefixes, PROMPTS, GREEDY, callback)
            assert found[1][0].token_ids == want[1, 1, 0][0].token_ids[:count]
            assert found[1][0].token_logprobs == want[1, 1, 0][0].token_logprobs[:count]
            assert found[1][0].score == sum(found[1][0].token_logprobs)
            assert [found[r] for r in (0, 2, 3)] == [want[r, r, 0] for r in (0, 2, 3)]
            assert seen == [row[0].token_ids for row in found]

        def cancel(rng):
            token = gitfast.CancelToken()
            threading.Timer(float(rng.random()) * 0.02, token.cancel).start()
            with pytest.raises(gitfast.CancelledError):
                repeat(engine.generate, prefixes, PROMPTS, LONG, cancel=token)

        def encode(rng):
            first = int(rng.integers(3))
            got = engine.encode(pixels[first:])
            assert all(
                np.array_equal(g.keys_values(2)[0], p.keys_values(2)[0])
                for g, p in zip(got, prefixes[first:3], strict=True)
            )

        def score(rng):
            for got, expected in zip(engine.score(prefixes, PROMPTS), scores, strict=True):
                np.testing.assert_array_equal(got, expected)

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(12):
                [generate, generate, fail, stop, cancel, encode, score][rng.integers(7)](rng)

        with ThreadPoolExecutor(6) as callers:
            list(callers.map(work, range(6)))
        np.testing.assert_array_equal(prefixes[1].keys_values(2)[0], keys)

    def test_calls_share_their_steps(self):
        """Eight calls of 30 tokens take little more than 29 steps after the first, not eight times as many."""
        engine = make_engine(make_model())
        inside = threading.Barrier(8)

        def wait_for_all(row, tokens):
            if not reached.is_set():
                inside.wait(60)
                reached.set()

        reached = threading.Event()
        with ThreadPoolExecutor(8) as callers:
            calls = [callers.submit(engine.generate, [None], [[2, 5 + i]], LONG, wait_for_all) for i in range(8)]
            found = [call.result() for call in calls]
        assert engine.stats.decode_steps < 8 * 29 / 2
        assert found == [engine.generate([None], [[2, 5 + i]], LONG) for i in range(8)]

    def test_a_slow_callback_holds_nobody_up(self, engine, prefixes):
        inside, go_on = threading.Event(), threading.Event()

        def slow(row, tokens):
            inside.set()
            assert go_on.wait(60)

        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(engine.generate, prefixes[:1], PROMPTS[:1], GREEDY, slow)
            assert inside.wait(60)
            want = engine.generate(prefixes[:1], PROMPTS[:1], GREEDY)
            assert not call.done()
            go_on.set()
            assert call.result() == want

    def test_callbacks_run_on_the_thread_of_their_call(self, engine, prefixes):
        def call(_):
            threads = set()
            engine.generate(prefixes, PROMPTS, LONG, lambda *news: threads.add(threading.get_ident()))
            assert threads == {threading.get_ident()}

        with ThreadPoolExecutor(4) as callers:
            list(callers.map(call, range(8)))

    def test_a_callback_may_call_the_engine(self, engine, prefixes):
        want, inner = engine.generate(prefixes, PROMPTS, GREEDY), []

        def callback(row, tokens):
            if not inner:
                inner.append(None)
                inner[0] = (engine.generate(prefixes, PROMPTS, GREEDY), len(engine.encode(random_pixels(1, 3, 32, 32))))

        assert engine.generate(prefixes, PROMPTS, GREEDY, callback) == want
        assert inner == [(want, 1)]

    def test_a_row_that_fails_ends_its_call_alone(self, engine, prefixes):
        pixels = random_pixels(1, 3, 32, 32)
        pixels[:] = np.nan
        (spoiled,) = engine.encode(pixels)
        want = alone(engine, prefixes[0], PROMPTS[0], LONG)

        def good(_):
            return alone(engine, prefixes[0], PROMPTS[0], LONG) == want

        def bad(_):
            for options in (LONG, dataclasses.replace(LONG, num_beams=3)):
                with pytest.raises(ValueError, match=r"prompts\[1\]: logits: NaN in row 0"):
                    engine.generate([prefixes[0], spoiled], PROMPTS[:2], options)
            with pytest.raises(ValueError, match=r"sequences\[1\]: logits: NaN"):
                engine.score([prefixes[0], spoiled], [[2, 5], [2, 5]])
            return True

        with ThreadPoolExecutor(4) as callers:
            calls = [callers.submit(bad if i % 2 else good, i) for i in range(12)]
            assert all(call.result() for call in calls)

    def test_samples_without_a_seed_differ_from_row_to_row(self, engine, prefixes):
        options = GenerationOptions(max_new_tokens=12, do_sample=True)
        found = engine.generate([prefixes[0]] * 8, [[2]] * 8, options)
        assert len({tuple(row[0].token_ids) for row in found}) > 1
        seeded = GenerationOptions(max_new_tokens=12, do_sample=True, seed=1)
        found = engine.generate([prefixes[0]] * 8, [[2]] * 8, seeded)
        assert len({tuple(row[0].token_ids) for row in found}) == 1


class TestProgress:
    @pytest.mark.parametrize("options", OPTIONS)
    def test_what_is_told_joins_to_the_best(self, any_engine, options):
        prefixes = any_engine.encode(random_pixels(2, 3, 32, 32))
        told: list[list[int]] = [[], []]
        found = any_engine.generate(prefixes, PROMPTS[:2], options, lambda row, tokens: told[row].extend(tokens))
        assert told == [row[0].token_ids for row in found]

    @pytest.mark.parametrize("answer", [False, slow(0), slow(np.False_), None, slow(1), slow("go")])
    def test_a_false_answer_ends_its_row(self, any_engine, answer):
        engine = any_engine
        prefixes = engine.encode(random_pixels(2, 3, 32, 32))
        want = engine.generate(prefixes, PROMPTS[:2], LONG)
        found = engine.generate(prefixes, PROMPTS[:2], LONG, lambda row, tokens: answer if row == 0 else None)
        length = 30 if answer is None or answer else 1
        assert found[0][0].token_ids == want[0][0].token_ids[:length]
        assert found[1] == want[1]

    def test_beams_stop_as_they_stand(self, any_engine):
        engine = any_engine
        prefixes = engine.encode(random_pixels(2, 3, 32, 32))
        options = GenerationOptions(max_new_tokens=20, min_new_tokens=20, num_beams=3)
        calls = []
        found = engine.generate(prefixes, PROMPTS[:2], options, lambda row, _: calls.append(row) or calls.count(0) < 4)
        assert len(found[0][0].token_ids) == 4
        assert (found[0][0].finish_reason, calls.count(0)) == ("length", 4)


class TestCancelling:
    def test_what_is_cancelled_before_it_begins(self, any_engine):
        engine, token = any_engine, gitfast.CancelToken()
        prefixes = engine.encode(random_pixels(1, 3, 32, 32), cancel=token)
        engine.generate(prefixes, [[2]], GREEDY, cancel=token)
        engine.score(prefixes, [[2, 5]], cancel=token)
        token.check()
        token.cancel()
        late = gitfast.CancelToken(timeout=0)
        for cancel, error in ((token, gitfast.CancelledError), (late, gitfast.DeadlineError)):
            assert cancel.cancelled
            with pytest.raises(error):
                engine.encode(random_pixels(1, 3, 32, 32), cancel=cancel)
            with pytest.raises(error):
                engine.generate(prefixes, [[2]], GREEDY, cancel=cancel)
            with pytest.raises(error):
                engine.score(prefixes, [[2, 5]], cancel=cancel)
        assert issubclass(gitfast.DeadlineError, (gitfast.GitfastError, TimeoutError))

    def test_a_step_is_the_last(self, engine, prefixes):
        token, steps = gitfast.CancelToken(), []

        def third_time(row, tokens):
            steps.append(tokens)
            if len(steps) == 3:
                token.cancel()

        with pytest.raises(gitfast.CancelledError):
            engine.generate(prefixes[:1], PROMPTS[:1], LONG, third_time, cancel=token)
        assert len(steps) == 3

    def test_encoding_ends_between_layers(self):
        """A thousand images take seconds; the call ends long before."""
        engine = make_engine(make_model())
        for call in (engine.encode, engine.features):
            with pytest.raises(gitfast.DeadlineError):
                call(random_pixels(3_000, 3, 32, 32), cancel=gitfast.CancelToken(timeout=0.05))
        assert engine.stats.encoded_images < 3_000

    def test_a_call_that_waits_is_cancelled_too(self, engine, prefixes):
        """Both calls end: the one whose thread runs the steps, and the one whose thread waits."""
        tokens = [gitfast.CancelToken() for _ in range(3)]
        begun = threading.Barrier(4)

        def call(token):
            begun.wait(60)
            with pytest.raises(gitfast.CancelledError):
                repeat(engine.generate, prefixes, PROMPTS, LONG, cancel=token)
            return True

        with ThreadPoolExecutor(3) as callers:
            calls = [callers.submit(call, token) for token in tokens]
            begun.wait(60)
            for token, ended in zip(tokens, calls, strict=True):
                time.sleep(0.01)
                token.cancel()
                assert ended.result(60)

    def test_wrong_tokens_and_timeouts(self, engine):
        with pytest.raises(TypeError, match="cancel: expected a CancelToken or None, got float"):
            engine.generate([None], [[2]], GREEDY, cancel=1.5)
        for timeout, error in ((-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)):
            with pytest.raises(error, match="timeout: expected"):
                gitfast.CancelToken(timeout=timeout)
        assert not gitfast.CancelToken(timeout=float("inf")).cancelled


class TestDecoding:
    def test_random_joins_and_leaves_equal_calls_alone(self, engine, prefixes):
        rng = np.random.default_rng(0)
        decoding, live, told, ended = engine.decoding(), {}, {}, 0
        while ended < 40:
            if len(live) < 6:
                prefix, prompt = prefixes[rng.integers(4)], PROMPTS[rng.integers(4)]
                options = OPTIONS[rng.integers(len(OPTIONS))]
                handle = decoding.add(prefix, prompt, options)
                live[handle], told[handle] = (prefix, prompt, options), []
            if rng.integers(8) == 0:
                handle = list(live)[rng.integers(len(live))]
                assert decoding.cancel(handle)
                assert not decoding.cancel(handle)
                del live[handle]
            assert len(decoding) == len(live)
            events = decoding.step()
            assert sorted(event.handle for event in events) == sorted(live)
            for event in events:
                told[event.handle] += event.token_ids
                if event.done:
                    prefix, prompt, options = live.pop(event.handle)
                    assert event.generations == alone(engine, prefix, prompt, options)
                    if options.num_beams == options.num_return_sequences == 1:
                        assert told[event.handle] == event.generations[0].token_ids
                    ended += 1
        assert engine.decoding().step() == []

    def test_errors_name_their_argument(self, engine, prefixes):
        decoding = engine.decoding()
        with pytest.raises(ValueError, match="token id 70 is outside the vocabulary"):
            decoding.add(None, [70], GREEDY)
        with pytest.raises(TypeError, match="prefix: expected a prefix of this engine or None, got int"):
            decoding.add(3, [2], GREEDY)
        with pytest.raises(TypeError, match="num_beams: expected an integer, got None"):
            decoding.add(None, [2], GenerationOptions(num_beams=None))
        with pytest.raises(ValueError, match="another engine"):
            make_engine(make_model()).decoding().add(prefixes[0], [2], GREEDY)
        assert len(decoding) == 0

    def test_a_sequence_that_fails_leaves_the_others(self, engine, prefixes):
        pixels = random_pixels(1, 3, 32, 32)
        pixels[:] = np.nan
        (spoiled,) = engine.encode(pixels)
        decoding = engine.decoding()
        bad, good = decoding.add(spoiled, [2], GREEDY), decoding.add(prefixes[0], [2], GREEDY)
        first = {event.handle: event for event in decoding.step()}
        assert isinstance(first[bad].error, ValueError)
        assert first[bad].done
        assert len(decoding) == 1
        while not (events := decoding.step())[0].done:
            pass
        assert events[0].handle == good
        assert events[0].generations == alone(engine, prefixes[0], [2], GREEDY)

    def test_it_keeps_its_engine(self):
        decoding = make_engine(make_model()).decoding()
        decoding.add(None, [2], GREEDY)
        while not (event := decoding.step()[0]).done:
            pass
        assert event.generations == alone(make_engine(make_model()), None, [2], GREEDY)

    def test_engines_without_one_say_so(self):
        with pytest.raises(gitfast.EngineError, match="reference engine: has no running batch"):
            ReferenceEngine(make_model()).decoding()


@pytest.mark.parametrize("field", ["num_beams", "num_return_sequences", "max_new_tokens", "top_k"])
@pytest.mark.parametrize("value", [None, "4", 2.5, True])
def test_options_of_wrong_types_are_named(any_engine, field, value):
    with pytest.raises(TypeError, match=f"{field}: expected an integer, got {value!r}"):
        any_engine.generate([None], [[2]], GenerationOptions(**{field: value}))
