"""The CPU engine: against the reference engine, and the promises that are its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gitfast import _C
from gitfast.engines.base import Engine
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.reference import ReferenceEngine
from gitfast.errors import ArgumentError, CheckpointError
from gitfast.torch_model import GitModel
from gitfast.types import GenerationOptions, ImagePrefix

from support.tiny_model import GREEDY, PROMPTS, VISION, make_engine, make_model, random_pixels, weights_of


@pytest.fixture(scope="module")
def model() -> GitModel:
    return make_model()


@pytest.fixture(scope="module")
def engine(model) -> CpuEngine:
    return make_engine(model)


@pytest.fixture(scope="module")
def prefixes(engine) -> list:
    return engine.encode(random_pixels(4, 3, 32, 32))


def assert_same_output(ours: CpuEngine, theirs: ReferenceEngine, pixels: np.ndarray) -> None:
    """Prefixes, scores and greedy tokens of both engines; one row has no image."""
    mine, exact = ours.encode(pixels), theirs.encode(pixels)
    for got, want in zip(mine, exact, strict=True):
        assert (got.num_tokens, got.keys_values(0)[0].shape) == (want.num_tokens, want.keys_values(0)[0].shape)
        for layer in range(ours.config.num_hidden_layers):
            for a, b in zip(got.keys_values(layer), want.keys_values(layer), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    mine, exact = [mine[0], None, mine[1], mine[0]], [exact[0], None, exact[1], exact[0]]
    for got, want in zip(ours.score(mine, PROMPTS), theirs.score(exact, PROMPTS), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    options = GenerationOptions(max_new_tokens=10, min_new_tokens=8)
    generated = ours.generate(mine, PROMPTS, options)
    for (got,), (want,) in zip(generated, theirs.generate(exact, PROMPTS, options), strict=True):
        assert (got.token_ids, got.finish_reason) == (want.token_ids, want.finish_reason)
        np.testing.assert_allclose(got.token_logprobs, want.token_logprobs, rtol=0, atol=2e-5)
        assert got.score == pytest.approx(want.score, abs=1e-4)
    assert len({token for (row,) in generated for token in row.token_ids}) >= 8, "a model that repeats itself"


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("frames", [None, 3, 2])
def test_equals_the_reference_engine(isa, frames):
    model = make_model(num_image_with_embedding=3 if frames else None)
    pixels = random_pixels(2, *([frames] if frames else []), 3, 32, 32)
    engine: Engine = make_engine(model, isa=isa)
    assert engine.isa == isa
    assert_same_output(engine, ReferenceEngine(model), pixels)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 33, "num_attention_heads": 1, "intermediate_size": 7, "vocab_size": 31},
        {"num_hidden_layers": 1, "vision_config": {**VISION, "image_size": 39, "patch_size": 13}},
        {"num_hidden_layers": 1, "vision_config": {**VISION, "image_size": 7, "patch_size": 7}},
        {"vision_config": {**VISION, "image_size": 30, "patch_size": 7}},  # a border that no patch covers
        {"vision_config": {**VISION, "image_size": 96}},  # attention in several parts
    ],
    ids=["odd widths", "one layer", "one patch", "border", "many patches"],
)
def test_odd_shapes_equal_the_reference_engine(sizes):
    model = make_model(**sizes)
    size = model.config.vision_config.image_size
    assert_same_output(make_engine(model), ReferenceEngine(model), random_pixels(2, 3, size, size))


def test_single_image_on_a_video_model_has_no_temporal_embedding():
    model = make_model(num_image_with_embedding=3)
    engine, pixels = make_engine(model), random_pixels(1, 3, 32, 32)
    with torch.no_grad():
        want = model.image_features(torch.from_numpy(pixels)).numpy()
        as_clip = model.image_features(torch.from_numpy(pixels[:, None])).numpy()
    np.testing.assert_allclose(engine.features(pixels), want, rtol=0, atol=2e-5)
    np.testing.assert_allclose(engine.features(pixels[:, None]), as_clip, rtol=0, atol=2e-5)
    assert abs(want - as_clip).max() > 0.1


def test_half_precision_weights_are_widened_exactly(model):
    halves = weights_of(model, np.float16)
    rounded = {name: x.astype(np.float32) for name, x in halves.items()}
    pixels, results = random_pixels(2, 3, 32, 32), []
    for weights in (halves, rounded):
        engine = CpuEngine.from_weights(model.config, weights, num_threads=2)
        results.append(engine.generate(engine.encode(pixels), PROMPTS[:2], GREEDY))
    assert results[0] == results[1]


def test_rows_do_not_depend_on_their_batch(engine):
    """Bit for bit: alone, in any batch, in any order, with a shared prefix or one of its own."""
    pixels = random_pixels(13, 3, 32, 32)
    prefixes = engine.encode(pixels)
    alone = [engine.encode(pixels[i : i + 1])[0] for i in range(13)]
    for a, b in zip(prefixes, alone, strict=True):
        for layer in range(3):
            for x, y in zip(a.keys_values(layer), b.keys_values(layer), strict=True):
                np.testing.assert_array_equal(x, y)

    prompts = [PROMPTS[i % 4] for i in range(13)]
    want = [engine.generate([p], [ids], GREEDY)[0] for p, ids in zip(alone, prompts, strict=True)]
    assert engine.generate(prefixes, prompts, GREEDY) == want
    order = np.random.default_rng(1).permutation(13)
    shuffled = engine.generate([prefixes[i] for i in order], [prompts[i] for i in order], GREEDY)
    assert shuffled == [want[i] for i in order]

    shared = [prefixes[i % 2] for i in range(13)]
    want = [engine.generate([p], [ids], GREEDY)[0] for p, ids in zip(shared, prompts, strict=True)]
    assert engine.generate(shared, prompts, GREEDY) == want
    sequences = [[*ids, 11, 12] for ids in prompts]
    for row, got in enumerate(engine.score(shared, sequences)):
        np.testing.assert_array_equal(got, engine.score([shared[row]], [sequences[row]])[0])


def test_more_images_than_are_encoded_at_once(engine):
    pixels = random_pixels(125, 3, 32, 32)  # 2,125 tokens
    prefixes = engine.encode(pixels)
    assert len(prefixes) == 125
    for i in (0, 119, 120, 124):
        (alone,) = engine.encode(pixels[i : i + 1])
        np.testing.assert_array_equal(prefixes[i].keys_values(2)[0], alone.keys_values(2)[0])


def test_result_does_not_depend_on_the_number_of_threads(model):
    pixels, results = random_pixels(3, 3, 32, 32), []
    for num_threads in (1, 2, 3, 8):
        engine = make_engine(model, num_threads=num_threads)
        assert engine.num_threads == num_threads
        results.append(engine.generate(engine.encode(pixels), PROMPTS[:3], GREEDY))
    assert all(r == results[0] for r in results)


def test_many_rows_on_one_image(engine, prefixes):
    """More text than runs at once: 300 sequences, about 2,400 tokens, over 1,000 of them on one prefix."""
    rng = np.random.default_rng(2)
    sequences = [[2, *rng.integers(4, 70, rng.integers(0, 15)).tolist()] for _ in range(300)]
    rows = [prefixes[min(i % 7, 3)] for i in range(300)]
    logits = engine.logits(rows, sequences)
    for got, ids, scores in zip(logits, sequences, engine.score(rows, sequences), strict=True):
        assert got.shape == (len(ids), 70)
        expected = torch.log_softmax(torch.from_numpy(got), dim=-1)[range(len(ids) - 1), ids[1:]].numpy()
        np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-6)
    for row in (0, 123, 299):
        np.testing.assert_array_equal(logits[row], engine.logits([rows[row]], [sequences[row]])[0])
    options = GenerationOptions(max_new_tokens=2)
    generated = engine.generate(rows, sequences, options)
    for row in (0, 123, 299):
        assert [generated[row]] == engine.generate([rows[row]], [sequences[row]], options)


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=12, num_beams=4, num_return_sequences=4),
        GenerationOptions(max_new_tokens=12, do_sample=True, num_return_sequences=5, seed=1),
    ],
    ids=["beams", "samples"],
)
def test_rows_that_fork_share_their_past(engine, prefixes, options):
    """Every sequence found has, bit for bit, the log-probabilities that one pass over all of it gives."""
    for r, row in enumerate(engine.generate(prefixes, PROMPTS, options)):
        assert len({tuple(g.token_ids) for g in row}) == options.num_return_sequences
        sequences = [PROMPTS[r] + g.token_ids for g in row]
        for g, scores in zip(row, engine.score([prefixes[r]] * len(row), sequences), strict=True):
            np.testing.assert_array_equal(g.token_logprobs, scores[len(PROMPTS[r]) - 1 :])


def test_no_rows(engine):
    assert engine.generate([], [], GREEDY) == []
    assert engine.score([], []) == []
    assert engine.logits([], []) == []


def test_text_may_fill_every_position(engine, prefixes):
    """The last token is chosen, and never run: it needs no position, as in transformers."""
    options = GenerationOptions(max_new_tokens=37, min_new_tokens=37)
    (row,) = engine.generate(prefixes[:1], [[2, 5, 6, 7]], options)
    assert len(row[0].token_ids) == 37
    with pytest.raises(ValueError, match=r"prompts\[0\]: 5 tokens and 37 new ones exceed the model's 40"):
        engine.generate(prefixes[:1], [[2, 5, 6, 7, 8]], options)


def test_prefix_is_shared_and_outlives_its_engine(model):
    engine = make_engine(model)
    (prefix,) = engine.encode(random_pixels(1, 3, 32, 32))
    assert isinstance(prefix, ImagePrefix)
    assert prefix.num_tokens == 17
    assert prefix.nbytes >= 3 * 2 * 17 * 64 * 4  # layers, keys and values, tokens, width, float32
    engine.generate([prefix] * 4, PROMPTS, GREEDY)
    assert engine.stats.encoded_images == 1
    want = prefix.keys_values(2)[0]
    del engine
    np.testing.assert_array_equal(prefix.keys_values(2)[0], want)


def test_stats_count_the_work(model):
    engine = make_engine(model)
    prefixes = engine.encode(random_pixels(2, 3, 32, 32))
    options = GenerationOptions(max_new_tokens=5, min_new_tokens=5)
    engine.generate(prefixes, PROMPTS[:2], options)
    stats = engine.stats
    assert (stats.encoded_images, stats.prefill_tokens, stats.decode_steps) == (2, 5, 4)


def test_callback_sees_every_token(engine, prefixes):
    seen = [[] for _ in PROMPTS]
    rows = engine.generate(prefixes, PROMPTS, GREEDY, lambda row, tokens: seen[row].extend(tokens))
    assert seen == [row[0].token_ids for row in rows]


def test_callback_sees_the_last_token_of_rows_that_end_apart():
    model = make_model()
    with torch.no_grad():
        model.output.bias[3] = 1.0  # ends come soon, at different steps
    engine = make_engine(model)
    prefixes, seen = engine.encode(random_pixels(4, 3, 32, 32)), [[] for _ in PROMPTS]
    options = GenerationOptions(max_new_tokens=30)
    rows = engine.generate(prefixes, PROMPTS, options, lambda row, tokens: seen[row].extend(tokens))
    assert [row[0].finish_reason for row in rows] == ["stop"] * 4
    assert len({len(tokens) for tokens in seen}) == 4
    assert seen == [row[0].token_ids for row in rows]


def test_callback_stops_the_generation(engine, prefixes):
    seen = []
    rows = engine.generate(prefixes[:1], PROMPTS[:1], GREEDY, lambda row, tokens: seen.append(tokens) or len(seen) < 3)
    assert len(rows[0][0].token_ids) == len(seen) == 3
    assert rows[0][0].finish_reason == "length"


def test_callback_errors_are_raised(engine, prefixes):
    def fail(row, tokens):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.generate(prefixes[:1], PROMPTS[:1], GREEDY, fail)
    with pytest.raises(TypeError, match="on_token: expected a function or None, got 7"):
        engine.generate(prefixes[:1], PROMPTS[:1], GREEDY, 7)


def test_concurrent_calls(engine, prefixes):
    """Callers that interleave get what they get alone; the shared thread pool and prefixes keep them apart."""
    want = engine.generate(prefixes, PROMPTS, GREEDY)
    keys = prefixes[0].keys_values(2)[0]

    def work(caller: int) -> bool:
        if caller % 3 == 0:
            return np.array_equal(engine.encode(random_pixels(4, 3, 32, 32))[0].keys_values(2)[0], keys)
        return engine.generate(prefixes, PROMPTS, GREEDY) == want

    with ThreadPoolExecutor(6) as callers:
        assert all(callers.map(work, range(60)))


def test_other_threads_run_during_a_call(engine):
    """The GIL is released: without that, and with no forced switches, the other thread would not get to run."""
    start, ran = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: start.wait() and ran.set())
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    try:
        start.set()
        engine.encode(random_pixels(1_000, 3, 32, 32))
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_works_in_a_forked_child(engine, prefixes):
    """torch hangs there; the engine makes itself new threads."""
    want = engine.generate(prefixes, PROMPTS, GREEDY)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        same = engine.generate(prefixes, PROMPTS, GREEDY) == want
        os.write(writer, b"same" if same else b"different")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"same"
    os.waitpid(child, 0)
    assert engine.generate(prefixes, PROMPTS, GREEDY) == want  # and the parent goes on


def test_signals_end_a_long_call():
    model = make_model(max_position_embeddings=20_000)
    engine = make_engine(model)

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # the call itself takes seconds
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.generate([None], [[2]], GenerationOptions(max_new_tokens=19_000, min_new_tokens=19_000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert engine.stats.decode_steps < 18_999


class CountingWeights(Mapping):
    """Makes each tensor anew when it is asked for, and remembers the most that were alive at once."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights, self.asked, self.alive, self.most_alive = weights, [], 0, 0

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.weights:
            raise KeyError(name)
        self.asked.append(name)
        made = self.weights[name].copy()
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(made, self._release)
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def _release(self) -> None:
        self.alive -= 1


def test_weights_are_read_once_and_let_go():
    model = make_model(num_image_with_embedding=3)
    weights = CountingWeights(weights_of(model))
    engine = CpuEngine.from_weights(model.config, weights)
    assert sorted(weights.asked) == sorted(weights)
    assert weights.most_alive == 1
    assert weights.alive == 0
    assert engine.nbytes >= sum(x.nbytes for x in weights.weights.values())


def test_both_spellings_of_the_temporal_embedding_load():
    model = make_model(num_image_with_embedding=3)
    published = {name.replace("temporal", "temperal"): x for name, x in weights_of(model).items()}
    pixels = random_pixels(1, 3, 3, 32, 32)
    got = CpuEngine.from_weights(model.config, published, num_threads=1).features(pixels)
    np.testing.assert_array_equal(got, make_engine(model, num_threads=1).features(pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output.bias": None}, "weights: missing output.bias"),
        (
            {"output.weight": np.zeros((2, 3), np.float32)},
            r"output.weight: expected shape \(70, 64\), got \(2, 3\)",
        ),
        ({"output.bias": np.zeros(70, np.int32)}, "output.bias: expected float32 or float16, got int32"),
        ({"output.weight": np.zeros((64, 70), np.float32).T}, "output.weight: expected a C-contiguous array"),
        ({"output.bias": [0.0] * 70}, "output.bias: expected a numpy array, got list"),
    ],
)
def test_wrong_weights_are_named(model, change, message):
    weights = {name: x for name, x in {**weights_of(model), **change}.items() if x is not None}
    with pytest.raises(CheckpointError, match=message):
        CpuEngine.from_weights(model.config, weights)


def test_weights_in_both_spellings_are_refused():
    model = make_model(num_image_with_embedding=2)
    weights = weights_of(model)
    name = "git.img_temporal_embedding.1"
    published = {key.replace("temporal", "temperal"): x for key, x in weights.items()}
    assert published.keys() != weights.keys()
    CpuEngine.from_weights(model.config, published)
    for make in (CpuEngine.from_weights, ReferenceEngine.from_weights):
        with pytest.raises(CheckpointError, match=f"weights: hold {name} twice, in both spellings"):
            make(model.config, {**weights, name.replace("temporal", "temperal"): weights[name] + 1})


def test_wrong_machine_settings_are_named(model):
    with pytest.raises(ValueError, match=r"isa: .*'avx1024'"):
        make_engine(model, isa="avx1024")
    with pytest.raises(ValueError, match=r"num_threads: .*-1"):
        make_engine(model, num_threads=-1)


@pytest.mark.parametrize(
    "value", [None, "4", 2.5, float("nan"), float("inf"), np.float32(1), np.ones(2), -1, 1 << 70, []]
)
def test_arguments_of_other_types_are_named(model, value):
    weights = weights_of(model)
    for name in ("num_threads", "num_lanes", "two_stage_head"):
        with pytest.raises(ArgumentError, match=f"^{name}: expected "):
            CpuEngine.from_weights(model.config, weights, **{name: value})
    with pytest.raises(ValueError, match=r"^isa: "):
        CpuEngine.from_weights(model.config, weights, isa=value)
    with pytest.raises(ArgumentError, match=r"^weights: expected a mapping of arrays, got "):
        CpuEngine.from_weights(model.config, value)
    with pytest.raises(ArgumentError, match=r"^config: expected a GitConfig, got "):
        CpuEngine.from_weights(value, weights)
    with pytest.raises(ArgumentError, match=r"^isa: expected the name"):
        CpuEngine.from_weights(model.config, weights, isa="\ud800")
    assert CpuEngine.from_weights(model.config, weights, num_threads=np.int64(1), num_lanes=np.uint8(2)).num_lanes == 2


def test_features_take_what_encode_takes(engine):
    for pixels, message in (
        (random_pixels(1, 3, 32, 64)[..., ::2], "expected a C-contiguous array"),
        (random_pixels(1, 3, 32, 31), "expected images of 32x32, got 32x31"),
        (random_pixels(1, 3, 32, 32).astype(np.float64), "float64"),
        (None, "expected an array, got NoneType"),
    ):
        for call in (engine.encode, engine.features):
            with pytest.raises(ValueError, match=f"pixel_values: .*{message}"):
                call(pixels)


def test_pixels_may_be_a_torch_tensor(engine):
    pixels = random_pixels(2, 3, 32, 32)
    np.testing.assert_array_equal(engine.features(torch.from_numpy(pixels)), engine.features(pixels))


def test_token_ids_may_be_arrays(engine, prefixes):
    ids = np.array([[2, 5, 6]])
    assert engine.generate(prefixes[:1], ids, GREEDY) == engine.generate(prefixes[:1], ids.tolist(), GREEDY)


def test_foreign_prefixes_are_refused(model, engine, prefixes):
    with pytest.raises(ValueError, match=r"prefixes\[1\]: was encoded by another engine"):
        make_engine(model).generate([None, prefixes[0]], [[2], [2]], GREEDY)
    (other,) = ReferenceEngine(model).encode(random_pixels(1, 3, 32, 32))
    with pytest.raises(TypeError, match=r"prefixes\[0\]: expected a prefix of this .*, got ReferencePrefix"):
        engine.score([other], [[2]])
    with pytest.raises(ValueError, match="layer: expected 0 to 2, got 3"):
        prefixes[0].keys_values(3)


def test_a_spoiled_image_spoils_its_own_prefix_only(engine):
    pixels = random_pixels(3, 3, 32, 32)
    clean = engine.encode(pixels)
    pixels[1, 0, 0, 0] = np.nan
    spoiled = engine.encode(pixels)
    assert np.isnan(spoiled[1].keys_values(2)[0]).any()
    for image in (0, 2):
        for a, b in zip(clean[image].keys_values(2), spoiled[image].keys_values(2), strict=True):
            np.testing.assert_array_equal(a, b)
