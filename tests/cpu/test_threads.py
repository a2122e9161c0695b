"""The pool of threads: forks, sharing, and the interpreter that runs on meanwhile."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gitfast import ops
from gitfast._C import choose_num_threads

from support.processes import run_python

# The work of every child process below: one product, on one thread and on a pool, must agree.
WORK = """
import os, signal, sys, threading
import numpy as np
from gitfast import ops
rng = np.random.default_rng(0)
x = rng.standard_normal((40, 200), np.float32)
weight = ops.PackedWeight(rng.standard_normal((900, 200), np.float32))
expected = ops.linear(x, weight)
pool = ops.ThreadPool(3)

def check():
    assert np.array_equal(ops.linear(x, weight, pool=pool), expected)

def forked(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            body()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
"""


def run_child(body: str) -> None:
    result = run_python(WORK + body)
    assert result.returncode == 0, result.stderr


def test_a_forked_child_makes_its_own_threads():
    run_child("check(); forked(check); check()")


def test_fork_before_the_first_use_and_fork_of_a_fork():
    run_child("forked(check); forked(lambda: (check(), forked(check), check())); check()")


def test_fork_while_another_thread_is_inside_the_pool():
    run_child(
        """
stop = False
def busy():
    while not stop:
        check()
threads = [threading.Thread(target=busy) for _ in range(2)]
for t in threads: t.start()
for _ in range(20): forked(check)
stop = True
for t in threads: t.join()
check()
"""
    )


def test_a_child_that_never_uses_the_pool_ends_cleanly():
    run_child("check()\nif os.fork() == 0: sys.exit(0)\nassert os.wait()[1] == 0\ndel pool")


def test_many_threads_share_a_pool_and_make_their_own():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((9, 100), np.float32), ops.PackedWeight(rng.standard_normal((300, 100), np.float32))
    expected, shared = ops.linear(x, weight), ops.ThreadPool(3)

    def caller(i: int) -> bool:
        same = True
        for _ in range(50):
            pool = shared if i % 2 else ops.ThreadPool(2)
            same &= np.array_equal(ops.linear(x, weight, pool=pool), expected)
        return same

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        assert all(executor.map(caller, range(8)))


def test_the_interpreter_runs_on_while_a_kernel_works():
    x, weight = np.zeros((400, 2048), np.float32), ops.PackedWeight(np.zeros((4096, 2048), np.float32))
    stop, ticks = threading.Event(), 0

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    ops.linear(x, weight, isa="scalar")  # a long call: with the lock held there would be no tick before its end
    during = ticks
    stop.set()
    ticker.join()
    assert during > 5


def test_number_of_threads(monkeypatch):
    monkeypatch.delenv("GITFAST_NUM_THREADS", raising=False)
    assert 1 <= choose_num_threads(0) <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("GITFAST_NUM_THREADS", "5")
    assert choose_num_threads(0) == 5
    assert ops.ThreadPool().num_threads == 5
    assert choose_num_threads(3) == 3
    for bad in ("0", "-1", "two", "3x", "1e2", "4096"):
        monkeypatch.setenv("GITFAST_NUM_THREADS", bad)
        with pytest.raises(
            ValueError, match=f"GITFAST_NUM_THREADS: expected a whole number from 1 to 1024, got '{bad}'"
        ):
            choose_num_threads(0)
    with pytest.raises(ValueError, match=r"num_threads: expected a whole number from 1 to 1024 .*, got -1"):
        ops.ThreadPool(-1)


def test_affinity_limits_the_threads():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from gitfast._C import choose_num_threads; assert choose_num_threads(0) == 1"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GITFAST_NUM_THREADS"}
    assert subprocess.run([sys.executable, "-P", "-c", code], env=environment, timeout=60).returncode == 0
