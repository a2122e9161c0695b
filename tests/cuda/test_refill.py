"""Calls of more rows than the CUDA engine decodes at once."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
import torch

from gitfast.engines.cpu import CpuEngine
from gitfast.engines.cuda import engine as engines_cuda
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.engines.cuda.search import DeviceSearch
from gitfast.engines.cuda.sequences import CudaPrefix, SequenceBatch
from gitfast.engines.search import native_options
from gitfast.errors import EngineError
from gitfast.inputs.processor import Processor
from gitfast.ops import cuda_persistent
from gitfast.types import Generation, GenerationOptions

from support.cuda.engine_cases import IMAGES, make_engine
from support.cuda.search_cases import rounds
from support.tiers import slow

QUESTIONS = ["", "what color ?", "how many ?", "", "what ?"]

SEARCHES = {
    "greedy": GenerationOptions(max_new_tokens=7),
    "beams": GenerationOptions(num_beams=2, num_return_sequences=2, max_new_tokens=4),
    "samples": GenerationOptions(do_sample=True, top_k=3, seed=1, num_return_sequences=2, max_new_tokens=4),
    "samples of all": GenerationOptions(do_sample=True, seed=2, num_return_sequences=2, max_new_tokens=4),
}


@pytest.fixture(autouse=True)
def small_clusters(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as many threads to emulate."""
    if device == "cpu":
        monkeypatch.setattr(cuda_persistent, "CLUSTER", 4)


@pytest.fixture(scope="module")
def prompts(processor: Processor) -> list[list[int]]:
    return [processor.tokenizer.prompt(question) for question in QUESTIONS]


def encode(engine: CudaEngine, processor: Processor) -> list[CudaPrefix]:
    """Five prefixes of three images."""
    prefixes = engine.encode(processor.images(IMAGES))
    return prefixes + engine.encode(processor.images(IMAGES[:2]))


@pytest.mark.parametrize(
    ("decode", "name"),
    [*(("operations", name) for name in SEARCHES), slow("persistent", "greedy"), ("persistent", "beams")],
)
def test_rows_are_what_they_are_all_at_once(
    device: str, decode: str, name: str, processor: Processor, prompts: list[list[int]]
) -> None:
    """Bit-identical with two rows at once, which have other neighbours and begin at other steps."""
    engine, options = make_engine(device, "bfloat16", shallow=True, decode=decode), SEARCHES[name]
    prefixes = encode(engine, processor)[: len(QUESTIONS) // options.num_return_sequences + 1]
    some = prompts[: len(prefixes)]
    expected = engine.generate(prefixes, some, options)
    engine.rows_at_once = 2 * options.num_beams
    assert engine.generate(prefixes, some, options) == expected
    assert next(reversed(engine._searches)).slots == 2


def test_captions(device: str, cpu: CpuEngine, processor: Processor, prompts: list[list[int]]) -> None:
    engine = make_engine(device, prefix_dtype="int8", rows_at_once=2)
    results = engine.generate(encode(engine, processor), prompts, SEARCHES["greedy"])
    pixels = processor.images(IMAGES)
    expected = cpu.generate([*cpu.encode(pixels), *cpu.encode(pixels[:2])], prompts, SEARCHES["greedy"])
    for (got,), (right,) in zip(results, expected, strict=True):
        assert (got.token_ids, got.finish_reason) == (right.token_ids, right.finish_reason)


def test_long_texts_do_not_hold_short_ones(device: str, processor: Processor) -> None:
    engine, options = make_engine(device, rows_at_once=2), GenerationOptions(max_new_tokens=12)
    prefixes, prompt = encode(engine, processor), processor.tokenizer.prompt

    def steps_of(places: list[CudaPrefix], texts: list[list[int]]) -> tuple[list[list[Generation]], int]:
        before = engine.stats.decode_steps
        return engine.generate(places, texts, options), engine.stats.decode_steps - before + 1

    texts = [prompt(), prompt("what color ?"), prompt("what color ?"), prompt("what color ?"), prompt()]
    results, steps = steps_of(prefixes, texts)
    lengths = [len(item[0].token_ids) for item in results]
    assert max(lengths) > 2 * min(lengths), "the case is too easy"
    in_parts = sum(steps_of(prefixes[i : i + 2], texts[i : i + 2])[1] for i in range(0, 5, 2))
    late = 3  # steps, until the host of a device knows
    assert rounds(lengths, 2) <= steps <= rounds(lengths, 2) + late < in_parts


@pytest.mark.parametrize(("at_once", "steps"), [(5, 3), (2, 9)])
def test_no_step_is_enqueued_that_no_sequence_can_need(
    device: str, at_once: int, steps: int, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late the host learns that all have ended: a device is some steps behind."""
    engine, options = make_engine(device, shallow=True, rows_at_once=at_once), GenerationOptions(max_new_tokens=3)
    known: deque[list[int]] = deque()
    ended = DeviceSearch.ended

    def late(search: DeviceSearch) -> list[int]:
        known.append(ended(search))
        return known.popleft() if len(known) > 8 else []

    monkeypatch.setattr(DeviceSearch, "ended", late)
    results = engine.generate(encode(engine, processor), [processor.tokenizer.prompt()] * 5, options)
    assert [len(item[0].token_ids) for item in results] == [3] * 5
    assert engine.stats.decode_steps + 1 == steps


def test_nothing_is_enqueued_when_all_have_ended(device: str, processor: Processor) -> None:
    engine, options = make_engine(device, shallow=True), GenerationOptions(max_new_tokens=9)
    prefix, prompt = engine.encode(processor.images(IMAGES[:1])), [processor.tokenizer.prompt()]
    engine.generate(prefix, prompt, options)
    (search,) = engine._searches.values()
    with torch.inference_mode():
        search.join(prefix, prompt, {**native_options(options, engine.config.eos_token_ids), "max_new_tokens": 2})
        search._steps_left = 9  # texts that end early need fewer than they may
        taken = [search.advance() for _ in range(8)]
    assert search.ended() == [0]
    assert taken[:2] == [True, True]
    assert not any(taken[5:])


def test_a_search_is_given_up_before_its_counters_overflow(
    device: str, processor: Processor, prompts: list[list[int]]
) -> None:
    engine, options = make_engine(device, shallow=True, rows_at_once=2), GenerationOptions(max_new_tokens=2)
    prefixes = encode(engine, processor)
    expected = engine.generate(prefixes, prompts, options)
    (search,) = engine._searches.values()
    state, many = search._state, 2**30 - 6  # sequences have come, and have ended
    with torch.inference_mode():
        state.given.host["queued"][0] = many
        state.given.to_device()
        for counter in (state.next_sequence, state.num_ended):
            counter.fill_(many)
    for kept in (1, 0, 1):  # after five more, after ten, and by another
        assert engine.generate(prefixes, prompts, options) == expected
        assert len(engine._searches) == kept
    assert search not in engine._searches.values()


def test_what_has_ended_reads_no_prefix(device: str, processor: Processor) -> None:
    engine, options = make_engine(device, shallow=True), GenerationOptions(max_new_tokens=3)
    prefixes, prompt = encode(engine, processor), processor.tokenizer.prompt()
    engine.generate(prefixes, [prompt] * 5, options)
    (search,) = engine._searches.values()
    assert search._rows.tiles[0].tolist() == [[row, 1, -1] for row in range(5)]
    assert search._state.image.tolist() == [-1] * 5


def test_rows_may_share_prefixes(device: str, processor: Processor, prompts: list[list[int]]) -> None:
    engine = make_engine(device, shallow=True)
    first, second, *_ = encode(engine, processor)
    prefixes = [first, second, second, first, first]
    expected = engine.generate(prefixes, prompts, SEARCHES["greedy"])
    engine.rows_at_once = 2
    assert engine.generate(prefixes, prompts, SEARCHES["greedy"]) == expected
    assert next(reversed(engine._searches)).groups == ((2, 65),)


def test_memory_is_shared(device: str, processor: Processor, prompts: list[list[int]]) -> None:
    """Calls of equal rows and prefixes (rounded up) share memory; no call has more than some times those at once."""
    engine, options = make_engine(device, shallow=True, rows_at_once=2), GenerationOptions(max_new_tokens=2)
    prefixes = encode(engine, processor)
    alone = [engine.generate([prefix], [prompt], options)[0] for prefix, prompt in zip(prefixes, prompts, strict=True)]
    engine._searches.clear()
    for count in (3, 4):
        assert engine.generate(prefixes[:count], prompts[:count], options) == alone[:count]
    assert [key.sequences for key in engine._searches] == [4]
    assert engine.generate(prefixes * 2, prompts * 2, options) == alone * 2
    assert [key.sequences for key in engine._searches] == [4, 8]


def test_memory_of_searches_is_bounded(
    device: str, processor: Processor, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(device, shallow=True)
    prefixes, options = encode(engine, processor), GenerationOptions(max_new_tokens=2)
    engine.generate(prefixes[:1], prompts[:1], options)
    (search,) = engine._searches.values()
    assert search.nbytes > prefixes[0].nbytes
    monkeypatch.setattr(engines_cuda, "_MAX_SEARCH_BYTES", search.nbytes * 4)
    engine.generate(prefixes[:2], prompts[:2], options)
    assert len(engine._searches) == 2
    engine.generate(prefixes[:3], prompts[:3], options)
    assert [key.slots for key in engine._searches] == [3]
    monkeypatch.setattr(engines_cuda, "_MAX_SEARCH_BYTES", 0)
    engine.generate(prefixes[:1], prompts[:1], options)
    assert not engine._searches


def test_searches_that_are_kept_make_room(
    device: str, processor: Processor, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, make = make_engine(device, shallow=True), DeviceSearch.__init__
    prefixes, options = encode(engine, processor), GenerationOptions(max_new_tokens=2)
    (alone,) = engine.generate(prefixes[:1], prompts[:1], options)

    def full(search: DeviceSearch, *given: object) -> None:
        if engine._searches:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        make(search, *given)

    monkeypatch.setattr(DeviceSearch, "__init__", full)
    assert engine.generate(prefixes[:2], prompts[:2], options)[0] == alone
    assert [key.slots for key in engine._searches] == [2]

    def always_full(search: DeviceSearch, *given: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(DeviceSearch, "__init__", always_full)
    with pytest.raises(EngineError, match="9 GiB"):
        engine.generate(prefixes[:3], prompts[:3], options)
    monkeypatch.setattr(DeviceSearch, "__init__", make)
    assert engine.generate(prefixes[:1], prompts[:1], options) == [alone]


def test_what_is_done_in_parts(
    device: str, processor: Processor, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls with rules decode no more rows at once either."""
    engine, prefixes, sizes, start = make_engine(device, shallow=True), [], [], SequenceBatch.__init__
    options = replace(SEARCHES["greedy"], max_new_tokens=4, repetition_penalty=1.1)
    prefixes = encode(engine, processor)
    expected = engine.generate(prefixes, prompts, options)

    def noted_start(batch: SequenceBatch, decoder: object, prefixes: list[CudaPrefix], *args: object) -> None:
        sizes.append(len(prefixes))
        start(batch, decoder, prefixes, *args)

    monkeypatch.setattr(SequenceBatch, "__init__", noted_start)
    engine.rows_at_once = 2
    assert engine.generate(prefixes, prompts, options) == expected
    assert sizes == [2, 2, 1]


def test_tokens_are_streamed_of_all_rows(device: str, processor: Processor, prompts: list[list[int]]) -> None:
    engine, streamed = make_engine(device, shallow=True, decode="persistent", rows_at_once=2), [[] for _ in QUESTIONS]
    options = GenerationOptions(max_new_tokens=3)
    results = engine.generate(encode(engine, processor), prompts, options, lambda row, ids: streamed[row].extend(ids))
    assert streamed == [item[0].token_ids for item in results]


def test_logits_that_are_no_numbers_name_their_row(device: str, processor: Processor, prompts: list[list[int]]) -> None:
    engine = make_engine(device, shallow=True, rows_at_once=2)
    prefixes = encode(engine, processor)
    bad = CudaPrefix(prefixes[3].keys, torch.full_like(prefixes[3].values, torch.nan), prefixes[3].engine)
    with pytest.raises(ValueError, match="logits: NaN in row 3"):
        engine.generate([*prefixes[:3], bad, prefixes[4]], prompts, SEARCHES["greedy"])
    assert len(engine.generate(prefixes, prompts, SEARCHES["greedy"])) == 5


def test_no_row_at_all(device: str) -> None:
    with pytest.raises(ValueError, match="rows_at_once: expected at least 1, got 0"):
        make_engine(device, rows_at_once=0)
