"""Processes that end, or fork, in the middle of native work: no abort, no hang."""

from __future__ import annotations

import subprocess
import textwrap

import pytest

from support.processes import run_python
from support.tiers import slow

PRELUDE = """
import os, sys, threading, time
import gitfast
from PIL import Image
model = gitfast.load("git-tiny")
image = Image.new("RGB", (64, 64), "red")
LONG = dict(max_new_tokens=10, min_new_tokens=10)
"""


def run(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return run_python(PRELUDE + textwrap.dedent(code), timeout=timeout)


def assert_clean(ended: subprocess.CompletedProcess[str], code: int = 0) -> None:
    assert (ended.returncode, "terminate" in ended.stderr, "Fatal" in ended.stderr) == (code, False, False), (
        ended.stderr
    )


@pytest.mark.parametrize("attempt", [0, slow(1), slow(2)])
def test_exit_with_an_unfinished_stream(attempt):
    ended = run("stream = model.stream(image, **LONG)\nprint(repr(next(stream)))")
    assert_clean(ended)
    assert ended.stdout


@pytest.mark.parametrize("attempt", [0, slow(1), slow(2)])
def test_exit_with_many_unfinished_streams_kept_by_a_cycle(attempt):
    assert_clean(
        run("""
        streams = [model.stream(image, **LONG) for _ in range(5)]
        for stream in streams:
            next(stream)
        streams.append(streams)
        sys.modules["kept"] = streams
    """)
    )


def test_exit_while_a_daemon_thread_begins_a_stream():
    """The stream is known before its thread runs, and cannot be waited for yet."""
    ended = run("""
        start = threading.Thread.start
        def late(thread):
            if thread.name == "gitfast-stream":
                begun.set()
                time.sleep(600)
            start(thread)
        begun = threading.Event()
        threading.Thread.start = late
        threading.Thread(target=lambda: list(model.stream(image)), daemon=True).start()
        begun.wait()
    """)
    assert_clean(ended)
    assert not ended.stderr


def test_a_stream_for_which_there_is_no_thread():
    ended = run("""
        start = threading.Thread.start
        def refused(thread):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = refused
        try:
            next(model.stream(image))
        except RuntimeError as error:
            print(error)
        threading.Thread.start = start
        print("".join(model.stream(image)) == model.caption(image).text)
    """)
    assert_clean(ended)
    assert (ended.stdout.splitlines(), ended.stderr) == (["can't start new thread", "True"], "")


def test_an_error_inside_the_loop_of_a_stream():
    ended = run("for piece in model.stream(image, **LONG):\n    raise ZeroDivisionError('mine')")
    assert_clean(ended, 1)
    assert ended.stderr.strip().endswith("ZeroDivisionError: mine")


def test_sys_exit_inside_the_loop_of_a_stream():
    assert_clean(run("for piece in model.stream(image, **LONG):\n    sys.exit(7)"), 7)


LOOPS = {
    "caption": "model.caption(image, **LONG)",
    "encode": "model.encode([image] * 4)",
    "score": "model.score(image, ['red', 'a red square'])",
    "stream": "list(model.stream(image, **LONG))",
    "callback": "model.engine.generate([prefix], [[2]], options, lambda *_: time.sleep(0.0001))",
    "decoding": "decoding.add(prefix, [2], options); decoding.step()",
}


@pytest.mark.parametrize("attempt", [0, slow(1)])
@pytest.mark.parametrize("loop", LOOPS)
def test_daemon_threads_in_native_work(loop, attempt):
    """Python takes the GIL from them for ever; they end up asleep, and the process ends as it should."""
    ended = run(f"""
        prefix = model.encode(image)
        options = gitfast.GenerationOptions(max_new_tokens=10, min_new_tokens=10)
        decoding = model.engine.decoding()
        begun = threading.Semaphore(0)
        def work():
            while True:
                {LOOPS[loop]}
                begun.release()
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        for _ in range(4):
            begun.acquire()
    """)
    assert_clean(ended)


def test_a_forked_child_cannot_read_its_parents_stream():
    ended = run("""
        stream = model.stream(image, **LONG)
        next(stream)
        child = os.fork()
        if child == 0:
            try:
                next(stream)
            except gitfast.EngineError as error:
                print("child:", error, flush=True)
            stream.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(status, len(list(stream)) > 0)
    """)
    assert_clean(ended)
    assert ended.stdout.splitlines() == [
        "child: stream: goes on in the process that began it, not in a forked child",
        "0 True",
    ]


def test_fork_while_other_threads_work():
    """The child finds the engine's locks in any state, and a running batch that is its parent's."""
    ended = run("""
        prefix = model.encode(image)
        options = gitfast.GenerationOptions(max_new_tokens=10, min_new_tokens=10)
        want = model.engine.generate([prefix], [[2]], options)
        stop = False
        def work():
            while not stop:
                assert model.engine.generate([prefix], [[2]], options) == want
                model.encode(image)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                os._exit(0 if model.engine.generate([prefix], [[2]], options) == want else 1)
            codes.append(os.waitpid(child, 0)[1])
        stop = True
        for thread in threads:
            thread.join()
        print(codes)
    """)
    assert_clean(ended)
    assert ended.stdout.strip() == str([0] * 8)


def test_a_call_that_forks_in_its_callback_goes_on_in_the_parent_alone():
    ended = run("""
        prefix = model.encode(image)
        options = gitfast.GenerationOptions(max_new_tokens=10, min_new_tokens=10)
        want = model.engine.generate([prefix], [[2]], options)
        children = []
        def fork(row, tokens):
            if not children:
                children.append(os.fork())
        try:
            same = model.engine.generate([prefix], [[2]], options, fork) == want
        except ValueError as error:
            again = model.engine.generate([prefix], [[2]], options)
            print("child:", "before a fork" in str(error), again == want, flush=True)
            os._exit(0)
        print(os.waitpid(children[0], 0)[1], same)
    """)
    assert_clean(ended)
    assert ended.stdout.splitlines() == ["child: True True", "0 True"]
