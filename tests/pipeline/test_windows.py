"""Many inputs through an engine that refills its rows: what it is handed, what is held, and what is read meanwhile."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import gitfast
from gitfast import ImageError, Model
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.processor import Processor
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.pipeline import batching as pipeline
from gitfast.pipeline.batching import Batching, EncodedBatch
from gitfast.types import GenerationOptions

from support.fake_engine import FakeEngine, FakePrefix, RefillingEngine
from support.tiny_checkpoint import random_image

BAD = b"not an image"
SOON = 30  # seconds until a test that waits for another thread fails


@pytest.fixture(scope="module")
def processor(checkpoint_folder) -> Processor:
    image_processor = ImageProcessor(size=16, crop_size=(16, 16))
    return Processor(image_processor=image_processor, tokenizer=Tokenizer.from_folder(checkpoint_folder))


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """PNG files of images, each with a score of its own."""
    found = []
    for i in range(20):
        file = io.BytesIO()
        random_image(i).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture(scope="module")
def scores(processor, files) -> dict[bytes, float]:
    found = {file: float(processor.images(file).mean()) for file in files}
    assert len(set(found.values())) == len(files)
    return found


class Sources:
    """Yields ``count`` files one by one; ``taken`` is the number handed out so far."""

    def __init__(self, files: list[bytes], count: int, error: Exception | None = None) -> None:
        self.files, self.count, self.error, self.taken = files, count, error, 0

    def __iter__(self) -> Iterator[bytes]:
        for file in itertools.islice(itertools.cycle(self.files), self.count):
            self.taken += 1
            yield file
        if self.error is not None:
            raise self.error


def generate(engine, processor, sources, *, questions=1, options=None, **batching):
    rows = pipeline.generate(
        engine,
        processor,
        sources,
        itertools.repeat([[2]] * questions),
        options or GenerationOptions(),
        Batching(**batching),
        show_prompt=False,
    )
    for results in rows:
        yield [result.error or pytest.approx(result.score, rel=1e-5) for result in results]


class TestWindows:
    def test_rows_of_many_batches_are_handed_over_together(self, processor, files, scores):
        engine = RefillingEngine(3)
        found = list(generate(engine, processor, Sources(files, 31), batch_size=3))
        assert engine.rows == [12, 12, 7]
        assert [count for count, *_ in engine.encoded] == [3] * 10 + [1]
        assert found == [[scores[file]] for file in Sources(files, 31)]

    @pytest.mark.parametrize("option", ["num_beams", "num_return_sequences"])
    def test_beams_and_samples_count(self, processor, files, option):
        engine = RefillingEngine(3)
        options = GenerationOptions(**{option: 4})
        list(generate(engine, processor, files[:8], options=options, batch_size=1))
        assert engine.rows == [3, 3, 2]

    def test_so_do_questions(self, processor, files):
        engine = RefillingEngine(3)
        list(generate(engine, processor, files[:8], questions=5, batch_size=1))
        assert engine.rows == [15, 15, 10]

    def test_a_batch_larger_than_a_window_goes_at_once(self, processor, files):
        engine = RefillingEngine(1)
        list(generate(engine, processor, files[:9], questions=30, batch_size=9))
        assert engine.rows == [270]

    def test_large_prefixes_make_windows_small(self, processor, files, monkeypatch):
        engine = RefillingEngine(3)
        monkeypatch.setattr(pipeline, "_WINDOW_BYTES", 7 * FakePrefix.nbytes)
        list(generate(engine, processor, files[:20], batch_size=3))
        assert engine.rows == [9, 9, 2]
        list(generate(engine, processor, files[:8], questions=5, batch_size=1))
        assert engine.rows[3:] == [15, 15, 10]

    def test_other_engines_are_given_batches(self, processor, files):
        engine = FakeEngine()
        list(generate(engine, processor, files[:9], questions=20, batch_size=4))
        assert engine.rows == [64, 16, 64, 16, 20]

    @pytest.mark.parametrize(
        ("engine", "expected"), [(FakeEngine(), 8), (RefillingEngine(5), 5), (RefillingEngine(99), 64)]
    )
    def test_batches_suit_the_engine(self, processor, files, engine, expected):
        list(generate(engine, processor, Sources(files, 70)))
        assert engine.encoded[0][0] == expected
        list(generate(engine, processor, Sources(files, 70), batch_size=3))
        assert engine.encoded[-2][0] == 3

    def test_timings_are_those_of_the_window(self, processor, monkeypatch):
        prefixes = [FakePrefix(np.zeros(1))] * 2
        batches = [
            EncodedBatch(prefixes, 1.0, 10.0),
            EncodedBatch(prefixes, 2.0, 20.0),
            EncodedBatch(prefixes, 4.0, 8.0),
        ]
        monkeypatch.setattr(pipeline, "encode", lambda *_: (batch for batch in batches))
        arguments = [], itertools.repeat([[2]]), GenerationOptions(), Batching()
        rows = pipeline.generate(RefillingEngine(1), processor, *arguments, show_prompt=False)
        timings = [result.timings for (result,) in rows]
        assert [(t.read, t.encode) for t in timings] == [(3.0, 30.0)] * 4 + [(4.0, 8.0)] * 2
        assert timings[0] == timings[3] != timings[4] == timings[5], "seconds of generating, too"


@pytest.fixture(params=[None, 2], ids=["batches", "windows"])
def engine(request) -> FakeEngine:
    return FakeEngine() if request.param is None else RefillingEngine(request.param)


class TestErrors:
    @pytest.mark.parametrize("places", [{0}, {7, 8}, {0, 2, 9, 19}, set(range(4, 12)), set(range(20))])
    def test_returned_in_their_place(self, engine, processor, files, scores, places):
        sources = [BAD if i in places else file for i, file in enumerate(files)]
        found = list(generate(engine, processor, sources, batch_size=4, on_error="return"))
        assert [isinstance(result, ImageError) for (result,) in found] == [i in places for i in range(20)]
        assert [r for i, (r,) in enumerate(found) if i not in places] == [
            scores[file] for file in sources if file != BAD
        ]
        assert sum(engine.rows) == 20 - len(places)

    def test_returned_for_every_question(self, engine, processor, files):
        (first, second) = generate(engine, processor, [BAD, files[0]], questions=3, on_error="return")
        assert [isinstance(result, ImageError) for result in first] == [True] * 3
        assert not any(isinstance(result, ImageError) for result in second)

    def test_nothing_but_errors_is_not_gathered(self, processor):
        sources = Sources([BAD], 10**9)
        results = generate(RefillingEngine(2), processor, sources, batch_size=2, on_error="return")
        next(results)
        assert sources.taken == 8 + 2
        results.close()

    @pytest.mark.parametrize("place", [0, 3, 4, 9, 18])
    def test_raised_after_the_results_before(self, engine, processor, files, scores, place):
        sources = [*files[:place], BAD, *files]
        results = generate(engine, processor, sources, batch_size=4)
        assert [next(results) for _ in range(place)] == [[scores[file]] for file in files[:place]]
        with pytest.raises(ImageError, match=rf"images\[{place}\]"):
            next(results)
        assert sum(engine.rows) == place, "what follows it is in vain"

    @pytest.mark.parametrize("place", [0, 3, 4, 9, 18])
    def test_so_are_those_of_the_iterable(self, engine, processor, files, scores, place):
        results = generate(engine, processor, Sources(files, place, error=OSError("gone")), batch_size=4)
        assert [next(results) for _ in range(place)] == [[scores[file]] for file in files[:place]]
        with pytest.raises(OSError, match="gone"):
            next(results)


class TestMemory:
    def test_a_model_hands_over_any_iterable(self, processor, checkpoint_folder, files, scores):
        engine = RefillingEngine(2)
        model = Model(engine, processor, gitfast.load(checkpoint_folder).config)
        sources = Sources(files, 10**9)
        with contextlib.closing(model.caption_each(sources)) as results:
            found = [next(results).score for _ in range(9)]
        assert found == pytest.approx([scores[file] for file in files[:9]], rel=1e-5)
        assert sources.taken == 16 + 2  # two windows, and what is read ahead
        assert engine.rows == [8, 8]

    def test_a_bounded_number_of_sources_is_taken(self, engine, processor, files):
        sources = Sources(files, 10**9)
        held = 4 if engine.rows_at_once is None else 8 + 4  # and a batch read ahead
        results = generate(engine, processor, sources, batch_size=4)
        assert sources.taken == 0
        for done in range(1, 50):
            next(results)
            assert done <= sources.taken < done + held
        results.close()

    def test_prefixes_of_one_window_are_held(self, processor, files):
        engine = RefillingEngine(2)
        gc.disable()  # references alone must let prefixes go
        try:
            for _ in generate(engine, processor, Sources(files, 50), batch_size=2):
                pass
        finally:
            gc.enable()
        assert engine.rows == [8] * 6 + [2]
        assert engine.most_prefixes <= 8 + 2  # and of the batch before


class WatchedFile(io.BytesIO):
    """Tells when it is read, and can be told to wait before it is."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.thread = ""

    def read(self, size: int | None = -1) -> bytes:
        self.thread = threading.current_thread().name
        self.begun.set()
        assert self.go_on.wait(SOON)
        return super().read(size)


class WatchedEngine(RefillingEngine):
    """Calls ``watch`` before it computes."""

    def __init__(self, rows_at_once: int, watch: Callable[[WatchedEngine], None]) -> None:
        super().__init__(rows_at_once)
        self.watch = watch

    def encode(self, pixel_values, **arguments):
        prefixes = super().encode(pixel_values, **arguments)
        self.watch(self)
        return prefixes

    def generate(self, *arguments, **options):
        generations = super().generate(*arguments, **options)
        self.watch(self)
        return generations


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gitfast-prefetch")]


class TestReadingAhead:
    def test_the_next_batch_is_read_while_the_engine_works(self, processor, files, scores):
        watched = [WatchedFile(file) for file in files[:6]]

        def watch(engine: WatchedEngine) -> None:
            done = 2 * len(engine.encoded)  # two a batch
            if done < 6:
                assert watched[done].begun.wait(SOON), "nobody reads meanwhile"
            assert not any(file.begun.is_set() for file in watched[done + 2 :]), "more than a batch ahead"

        found = list(generate(WatchedEngine(1, watch), processor, watched, batch_size=2))
        assert found == [[scores[file]] for file in files[:6]]
        assert reading_threads() == []

    def test_lists_beside_engines_on_the_cpu(self, processor, files):
        watched = [WatchedFile(file) for file in files[:6]]
        results = generate(FakeEngine(), processor, watched, batch_size=2)
        for done in range(6):
            next(results)
            ahead = done // 2 * 2 + 2
            if ahead < 6:
                assert watched[ahead].begun.wait(SOON), "nobody reads meanwhile"
            assert not any(file.begun.is_set() for file in watched[ahead + 2 :])
        assert list(results) == []
        assert reading_threads() == []

    def test_iterables_are_not_waited_for(self, processor, files):
        """Results come before the next batch is there."""
        watched = [WatchedFile(file) for file in files[:6]]
        results = generate(FakeEngine(), processor, iter(watched), batch_size=2)
        for done in range(6):
            next(results)
            assert [file.begun.is_set() for file in watched] == [i < done // 2 * 2 + 2 for i in range(6)]
        assert {file.thread for file in watched} == {threading.current_thread().name}

    def test_one_batch_is_read_by_the_caller(self, processor, files):
        watched = [WatchedFile(file) for file in files[:3]]
        list(generate(RefillingEngine(1), processor, watched, batch_size=3))
        assert {file.thread for file in watched} == {threading.current_thread().name}

    def test_closing_half_way_leaves_no_thread(self, processor, files):
        watched = [WatchedFile(file) for file in files]
        watched[4].go_on.clear()  # it is being read when the first window has been decoded
        results = generate(RefillingEngine(1), processor, watched, batch_size=1)
        next(results)
        assert watched[4].begun.wait(SOON)
        assert len(reading_threads()) == 1
        watched[4].go_on.set()
        results.close()
        assert reading_threads() == []
        assert not watched[5].begun.is_set()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    @pytest.mark.parametrize("calls", [1, 4, 5])  # while it encodes, four times, and generates
    def test_what_the_engine_raises_leaves_no_thread(self, processor, files, error, calls):
        remaining = iter([None] * (calls - 1) + [error()])

        def watch(engine: WatchedEngine) -> None:
            if (raised := next(remaining)) is not None:
                raise raised

        with pytest.raises(error) as held:  # its traceback keeps the frames, so that none ends by being let go of
            next(generate(WatchedEngine(1, watch), processor, files, batch_size=1))
        assert reading_threads() == []
        assert held.traceback
