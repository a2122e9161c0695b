"""Child processes of every start method that load a model, are sent one or inherit one: they work, and end cleanly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import textwrap

import pytest

from support.processes import ENVIRONMENT, PYTHON
from support.tiers import slow

PRELUDE = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import gitfast
from support.children import LONG, PICTURE, caption, leave_a_stream, opened, work, work_and_die
processes = multiprocessing.get_context(sys.argv[1])
model = gitfast.load("git-tiny", num_threads=2)
text = caption(model)  # the parent's threads are there before its children
given = model if sys.argv[2] == "model" else "git-tiny"
"""

pytestmark = [
    pytest.mark.parametrize("method", multiprocessing.get_all_start_methods()),
    pytest.mark.parametrize("given", ["model", slow("name")]),
]


def run(code: str, method: str, given: str) -> str:
    """Run a parent; it and all its children, which share its stdout, must end and say nothing on stderr."""
    program = [*PYTHON, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + textwrap.dedent(code), method, given]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, env=ENVIRONMENT, start_new_session=True, **streams) as parent:
        try:
            printed, said = parent.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(parent.pid, signal.SIGKILL)
            raise
    assert (parent.returncode, said) == (0, "")
    return printed.strip()


def test_a_pool(method, given):
    printed = run(
        """
        with processes.Pool(2) as pool:
            print(pool.map(caption, [given] * 4) == [text] * 4, caption(model) == text)
        """,
        method,
        given,
    )
    assert printed == "True True"


def test_an_executor(method, given):
    printed = run(
        """
        with ProcessPoolExecutor(2, mp_context=processes) as executor:
            print(list(executor.map(caption, [given] * 3)) == [text] * 3)
            for _ in range(20):
                executor.submit(caption, given)
            executor.shutdown(wait=False, cancel_futures=True)
        with ProcessPoolExecutor(1, mp_context=processes) as executor:
            try:
                executor.submit(work_and_die, given).result()
            except BrokenProcessPool:
                print(caption(model) == text)
        """,
        method,
        given,
    )
    assert printed.split() == ["True", "True"]


def test_children_that_leave_a_stream(method, given):
    """Beside their parent's own, which goes on."""
    printed = run(
        """
        stream = model.stream(PICTURE, **LONG)
        pieces = [next(stream)]
        children = [processes.Process(target=leave_a_stream, args=(given,)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        pieces += stream
        print([child.exitcode for child in children], "".join(pieces) == model.caption(PICTURE, **LONG).text)
        """,
        method,
        given,
    )
    assert printed == "[0, 0] True"


@pytest.mark.parametrize("way", ["terminate", slow("kill")])
def test_children_that_are_ended_at_work(method, given, way):
    printed = run(
        f"""
        children = []
        for _ in range(2):
            begun = processes.Event()
            children.append(processes.Process(target=work, args=(given, begun)))
            children[-1].start()
            begun.wait()
        for child in children:
            child.{way}()
            child.join()
        print([child.exitcode for child in children], caption(model) == text)
        """,
        method,
        given,
    )
    number = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}[way].value
    assert printed == f"[-{number}, -{number}] True"


def test_children_at_work_when_their_parent_ends(method, given):
    run(
        """
        begun = processes.Event()
        processes.Process(target=work, args=(given, begun), daemon=True).start()
        begun.wait()
        stream = model.stream(PICTURE, **LONG)
        next(stream)
        """,
        method,
        given,
    )
