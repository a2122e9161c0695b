"""Lanes: results are those of one lane, to the bit, and the work is divided."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gitfast
from gitfast.cli import main
from gitfast.engines.cpu import CpuEngine
from gitfast.errors import ArgumentError
from gitfast.types import GenerationOptions

from support.processes import run_python
from support.tiny_model import GREEDY, PROMPTS, make_engine, make_model, random_pixels

OPTIONS = [
    GREEDY,
    GenerationOptions(max_new_tokens=9, num_beams=4, num_return_sequences=3, length_penalty=0.6),
    GenerationOptions(max_new_tokens=8, do_sample=True, num_return_sequences=5, seed=7),
]


@pytest.fixture(scope="module")
def one_lane() -> CpuEngine:
    return make_engine(make_model(), num_lanes=1, num_threads=1)


@pytest.fixture(scope="module", params=[(2, 1), (3, 2), (8, 1)], ids=str)
def lanes(request) -> CpuEngine:
    num_lanes, num_threads = request.param
    engine = make_engine(make_model(), num_lanes=num_lanes, num_threads=num_threads)
    assert (engine.num_lanes, engine.num_threads) == request.param
    return engine


def repeat(call, *arguments, **options):
    """Call again and again, until it raises."""
    while True:
        call(*arguments, **options)


def test_results_are_those_of_one_lane(one_lane, lanes):
    pixels = random_pixels(5, 3, 32, 32)
    expected, prefixes = one_lane.encode(pixels), lanes.encode(pixels)
    for mine, theirs in zip(prefixes, expected, strict=True):
        for layer in range(lanes.config.num_hidden_layers):
            for a, b in zip(mine.keys_values(layer), theirs.keys_values(layer), strict=True):
                np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(lanes.features(pixels), one_lane.features(pixels))
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(5)]
    for options in OPTIONS:
        assert lanes.generate(prefixes, prompts, options) == one_lane.generate(expected, prompts, options)
        assert lanes.generate(prefixes[:1], prompts[:1], options) == one_lane.generate(
            expected[:1], prompts[:1], options
        )
    for mine, theirs in zip(lanes.score(prefixes, prompts), one_lane.score(expected, prompts), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(lanes.logits(prefixes, prompts), one_lane.logits(expected, prompts), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(lanes.attend(prefixes[0], [2, 5]), one_lane.attend(expected[0], [2, 5]))


def test_weights_are_held_once(one_lane, lanes):
    assert lanes.nbytes == one_lane.nbytes


def test_work_is_counted_once(lanes):
    before = lanes.stats
    prefixes = lanes.encode(random_pixels(6, 3, 32, 32))
    lanes.generate(prefixes, [[2]] * 6, GenerationOptions(max_new_tokens=4, min_new_tokens=4))
    assert lanes.stats.encoded_images - before.encoded_images == 6
    assert lanes.stats.prefill_tokens - before.prefill_tokens == 6
    assert lanes.stats.decode_rows - before.decode_rows == 6 * 3


def test_callbacks_run_on_the_thread_of_their_call(lanes):
    """Rows with a callback stay in one lane, whose other calls go on in the threads of their own."""
    prefixes = lanes.encode(random_pixels(4, 3, 32, 32))
    want = lanes.generate(prefixes, PROMPTS, GREEDY)

    def call(_):
        threads, told = set(), [[] for _ in prefixes]

        def callback(row, tokens):
            threads.add(threading.get_ident())
            told[row] += tokens

        assert lanes.generate(prefixes, PROMPTS, GREEDY, callback) == want
        assert threads == {threading.get_ident()}
        assert told == [row[0].token_ids for row in want]

    with ThreadPoolExecutor(6) as callers:
        list(callers.map(call, range(12)))


def test_errors_name_the_row_of_the_call(lanes):
    pixels = random_pixels(6, 3, 32, 32)
    pixels[5] = np.nan
    prefixes = lanes.encode(pixels)
    with pytest.raises(ValueError, match=r"prompts\[5\]: logits: NaN"):
        lanes.generate(prefixes, [[2]] * 6, GREEDY)
    with pytest.raises(ValueError, match=r"sequences\[5\]: logits: NaN"):
        lanes.score(prefixes, [[2, 5]] * 6)


def test_a_divided_call_is_cancelled_as_a_whole(lanes):
    with pytest.raises(gitfast.DeadlineError):
        lanes.encode(random_pixels(3_000, 3, 32, 32), cancel=gitfast.CancelToken(timeout=0.05))
    token = gitfast.CancelToken()
    threading.Timer(0.02, token.cancel).start()
    prefixes = lanes.encode(random_pixels(4, 3, 32, 32))
    with pytest.raises(gitfast.CancelledError):
        repeat(lanes.generate, prefixes, PROMPTS, GREEDY, cancel=token)


def test_ctrl_c_ends_a_divided_call(lanes):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell started us behind itself
    prefixes = lanes.encode(random_pixels(4, 3, 32, 32))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            repeat(lanes.generate, prefixes * 50, PROMPTS * 50, GREEDY)
    finally:
        signal.signal(signal.SIGINT, before)


CHILD = """
import os, threading, warnings
from support.tiny_model import GREEDY, PROMPTS, make_engine, make_model, random_pixels

engine = make_engine(make_model(), num_lanes=3, num_threads=2)
pixels = random_pixels(4, 3, 32, 32)
prefixes = engine.encode(pixels)
want = engine.generate(prefixes, PROMPTS, GREEDY)
stop = threading.Event()

def work():
    while not stop.is_set():
        engine.generate(prefixes, PROMPTS, GREEDY)

thread = threading.Thread(target=work, daemon=True)
thread.start()
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, from Python 3.12 on
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if engine.generate(engine.encode(pixels), PROMPTS, GREEDY) == want else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_forked_while_lanes_work_goes_on_and_the_parent_ends_cleanly():
    """The parent's other thread is in a call when the process ends."""
    finished = run_python(CHILD)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_batches_of_one_s_own(one_lane, lanes):
    found = []
    for _ in range(3):  # each in another lane
        decoding = lanes.decoding()
        decoding.add(None, [2, 5], GREEDY)
        while not (event := decoding.step()[0]).done:
            pass
        found.append(event.generations)
    assert found == one_lane.generate([None] * 3, [[2, 5]] * 3, GREEDY)


class TestChoosing:
    @pytest.mark.parametrize(
        ("cpus", "given", "crews"),
        [
            (1, {}, (1, 1)),
            (2, {}, (1, 2)),
            (8, {}, (1, 8)),
            (64, {}, (4, 16)),
            (8, {"num_lanes": 2}, (2, 4)),
            (2, {"num_lanes": 3}, (3, 1)),
            (64, {"num_threads": 3}, (1, 3)),
            (1, {"num_lanes": 2, "num_threads": 3}, (2, 3)),
        ],
    )
    def test_the_numbers(self, checkpoint_folder, monkeypatch, cpus, given, crews):
        monkeypatch.setenv("GITFAST_NUM_THREADS", str(cpus))
        model = gitfast.load(checkpoint_folder, **given)
        assert (model.engine.num_lanes, model.engine.num_threads) == crews

    @pytest.mark.parametrize(
        ("lanes", "message"),
        [
            (-1, "num_lanes: expected at least 0, got -1"),
            ("2", "num_lanes: expected an integer, got '2'"),
            (2000, "num_lanes: expected at most 1024, got 2000"),
            (1 << 40, "num_lanes: expected at most 1024, got 1099511627776"),
        ],
    )
    def test_numbers_that_cannot_be(self, checkpoint_folder, lanes, message):
        with pytest.raises((ArgumentError, ValueError), match=message):
            gitfast.load(checkpoint_folder, num_lanes=lanes)

    @pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
    @pytest.mark.parametrize("given", [{"num_lanes": 1000, "num_threads": 1}, {"num_threads": 1000}], ids=str)
    def test_more_threads_than_memory_is_for(self, checkpoint_folder, given):
        code = """
            import gc, os, resource, sys
            import gitfast
            from PIL import Image

            def pages():  # mapped, and of these resident: malloc's arenas come and go in threads
                return [int(word) * resource.getpagesize() for word in open("/proc/self/statm").read().split()[:2]]

            model, image = gitfast.load(sys.argv[1], num_threads=1), Image.new("RGB", (64, 64))
            want = model.caption(image).token_ids
            limit = pages()[0] + (1 << 28)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            said, sizes = set(), []
            for _ in range(6):
                try:
                    gitfast.load(sys.argv[1], **eval(sys.argv[2])).caption(image)
                except MemoryError as error:
                    said.add(str(error))
                gc.collect()
                sizes.append(pages()[1] >> 20)
            print(*said, sep=chr(10))
            print(len(os.listdir("/proc/self/task")), sizes[-1] - sizes[1])
            print(model.caption(image).token_ids == want)
        """
        ended = run_python(textwrap.dedent(code), checkpoint_folder, given)
        message, left, same = ended.stdout.splitlines()
        assert message.startswith("num_lanes, num_threads: the system has no room for so many threads (")
        threads, grown = map(int, left.split())
        assert (ended.returncode, threads <= 3, grown <= 8, same) == (0, True, True, "True"), ended.stdout

    def test_engines_without_lanes_say_so(self, checkpoint_folder):
        with pytest.raises(ValueError, match="num_lanes: the reference engine has no lanes"):
            gitfast.load(checkpoint_folder, engine="reference", num_lanes=2)

    def test_the_command_line(self, capsys, tmp_path):
        from PIL import Image

        picture = tmp_path / "a.png"
        Image.new("RGB", (64, 48), (200, 30, 30)).save(picture)
        texts = []
        for options in ([], ["--lanes", "2"], ["--lanes", "2", "--threads", "1"]):
            assert main(["caption", str(picture), *options]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] == texts[2] != ""
