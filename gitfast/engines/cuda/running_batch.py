"""Calls that are at work at the same time share searches on the device, and take turns on it with all other work.

There is no thread but the callers': one of them leads, enqueuing steps for all, and hands the lead on when its own call
has ended. Rows of a call join slots that are free between steps. What ends one call, be it an error, a cancellation or
an interrupt of its thread, ends no other.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gitfast.engines.base import EngineStats
from gitfast.engines.cuda.search import DeviceSearch, SearchKey, SearchMode
from gitfast.engines.cuda.sequences import CudaPrefix, tokens_of, wait_until_ready
from gitfast.ops.cuda_search import Found, NotNumbersError
from gitfast.types import CancelToken

_POLL_INTERVAL_S = 0.05  # between two looks of a waiting call for the lead
_MAX_ACTIVE = 4  # searches that take turns step by step

Open = Callable[[SearchKey], DeviceSearch]


class FairLock:
    """A lock that threads get in the order in which they ask, so that none that asks again and again starves others."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()  # each is released when its turn comes

    def __enter__(self) -> None:
        turn = threading.Lock()
        turn.acquire()
        with self._mutex:
            if not self._held:
                self._held = True
                return
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # an interrupt
            with self._mutex:
                its_turn = turn not in self._waiting
                if not its_turn:
                    self._waiting.remove(turn)
            if its_turn:
                self._pass_on()
            raise

    def __exit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


class TextCall:
    """The rows of one call, and what has become of them."""

    def __init__(
        self,
        mode: SearchMode,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any],
        cancel: CancelToken | None = None,
    ) -> None:
        self.mode, self.prefixes, self.prompts = mode, prefixes, prompts
        self.options, self.cancel = options, cancel
        self.waiting = list(range(len(prompts)))  # rows that have joined no search
        self.found: dict[int, list[Found]] = {}  # by row
        self.error: BaseException | None = None
        self.tokens = max(map(len, prompts)) + int(options["max_new_tokens"])  # of a row at most
        lengths = set(map(tokens_of, prefixes))
        self.prefix_tokens = lengths.pop() if len(lengths) == 1 else None  # None: of several lengths

    @property
    def ended(self) -> bool:
        """True once every row has a result, or an error ended them."""
        return self.error is not None or len(self.found) == len(self.prompts)

    def given(self, rows: Sequence[int]) -> tuple[list[CudaPrefix | None], list[Sequence[int]]]:
        """Return the prefixes and prompts of some rows."""
        return [self.prefixes[row] for row in rows], [self.prompts[row] for row in rows]


class _Running:
    """A search that takes steps, with the rows in it."""

    def __init__(self, key: SearchKey, search: DeviceSearch) -> None:
        self.key, self.search = key, search
        self.rows: dict[int, tuple[TextCall, int]] = {}  # by place: a row of a call
        self.counts: Counter[TextCall] = Counter()  # of rows here
        self.stopped: set[TextCall] = set()  # their rows here end at the next step, and nobody will read them
        self.fresh = True  # its next step is the first of all its rows

    def add(self, call: TextCall, rows: Sequence[int], places: Sequence[int]) -> None:
        """Note the places of rows that have joined."""
        self.rows |= {place: (call, row) for place, row in zip(places, rows, strict=True)}
        self.counts[call] += len(rows)

    def remove(self, place: int) -> tuple[TextCall, int]:
        """Let the row at a place leave."""
        call, row = self.rows.pop(place)
        self.counts[call] -= 1
        if not self.counts[call]:
            del self.counts[call]
            self.stopped.discard(call)
        self.search.leave(place)
        return call, row


class RunningBatch:
    """The calls that are at work, and the searches they share."""

    def __init__(
        self,
        open_search: Open,
        keep: Callable[[SearchKey, DeviceSearch], None],
        device: torch.device,
        lock: FairLock,
        stats: EngineStats,
        rows_at_once: Callable[[], int],
    ) -> None:
        """Begin with no calls.

        Args:
            open_search: Takes or makes the memory of a search.
            keep: Gets searches that have no rows any more.
            device: Where searches run.
            lock: Held by whoever enqueues work for the device.
            stats: Counts steps.
            rows_at_once: Returns the rows of a search at most.
        """
        self._open, self._keep, self._lock, self._stats = open_search, keep, lock, stats
        self._rows_at_once = rows_at_once
        # All work is on one stream, whichever thread leads.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._changed = threading.Condition()
        self._calls: list[TextCall] = []  # in the order in which they came
        self._leading = False
        self._active: list[_Running] = []  # touched by who leads

    def run(self, call: TextCall) -> list[list[Found]]:
        """Run a call to its end, together with what others bring.

        Raises:
            ValueError: the logits of a row were not numbers.
            CancelledError, DeadlineError: by its ``cancel``, between steps.
            torch.OutOfMemoryError: device memory does not suffice.
        """
        with self._changed:
            self._calls.append(call)
            try:
                while not call.ended:
                    if self._leading:
                        self._changed.wait(_POLL_INTERVAL_S)
                    else:
                        self._lead(call)
            finally:
                self._calls.remove(call)
                self._changed.notify_all()
                if not self._calls:  # rows whose call was interrupted
                    for running in list(self._active):
                        self._drop(running)
        if call.error is not None:
            raise call.error
        return [call.found[row] for row in range(len(call.prompts))]

    @property
    def searches(self) -> list[SearchKey]:
        """List the searches that take steps."""
        return [running.key for running in self._active]

    def _lead(self, own: TextCall) -> None:
        """Run steps for all calls until the thread's own has ended. Called with the mutex, which is free in steps."""
        self._leading = True
        try:
            while not own.ended:
                calls = list(self._calls)
                self._changed.release()
                try:
                    with self._lock, self._on_stream():
                        self._step(calls)
                finally:
                    self._changed.acquire()
                if any(call.ended for call in calls):
                    self._changed.notify_all()
        finally:
            self._leading = False
            self._changed.notify_all()

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext()

    def _step(self, calls: list[TextCall]) -> None:
        try:
            for call in calls:
                self._end_if_cancelled(call)
            self._stop_abandoned(calls)
            for call in calls:
                if not call.ended:
                    self._join(call)
            for running in list(self._active):
                self._advance(running, calls)
        except BaseException:  # an interrupt, anywhere: other calls begin again, and find the same
            for running in list(self._active):
                self._drop(running)
            raise

    def _end_if_cancelled(self, call: TextCall) -> None:
        if call.cancel is None or call.ended or not call.cancel.cancelled:
            return
        try:
            call.cancel.check()
        except Exception as error:
            call.error = error

    def _stop_abandoned(self, calls: list[TextCall]) -> None:
        """Let rows end at their next step whose call has ended early, or has left."""
        at_work = {call for call in calls if not call.ended}
        for running in self._active:
            left = set(running.counts) - at_work - running.stopped
            if left:
                running.search.stop([place for place, (call, _) in running.rows.items() if call in left])
                running.stopped |= left

    def _join(self, call: TextCall) -> None:
        """Let rows of a call that wait join searches, as many as there is room for."""
        while call.waiting and not call.ended:
            try:
                running = next((each for each in self._active if self._room(each, call)), None)
                if running is None and any(call in each.counts for each in self._active):
                    return  # its rows will end, and make room for the others
                running = running or self._begin(call)
                if running is None:
                    return
                rows = call.waiting[: self._room(running, call)]
                prefixes, prompts = call.given(rows)
                if self._stream is not None:
                    wait_until_ready(prefixes, self._stream)
                places = running.search.join(prefixes, prompts, call.options)
            except Exception as error:  # of this call: no search has changed
                call.error = error
                return
            call.waiting = call.waiting[len(rows) :]
            running.add(call, rows, places)

    def _room(self, running: _Running, call: TextCall) -> int:
        """Count the rows of a call that a search can take now."""
        if not running.key.takes(call.mode, call.prefix_tokens, call.tokens):
            return len(call.waiting) if running.search.is_idle and running.key == self._key(call) else 0
        return running.search.room(call.given(call.waiting)[0])

    def _key(self, call: TextCall) -> SearchKey:
        # Where calls come at the same time, more may follow: a search with slots to spare.
        shared = any(running.rows and running.key.mode == call.mode for running in self._active)
        prefixes, _ = call.given(call.waiting)
        return SearchKey.of(call.mode, prefixes, call.tokens, self._rows_at_once(), shared=shared)

    def _begin(self, call: TextCall) -> _Running | None:
        """Begin a search; None where the call has to wait for others to end."""
        key = self._key(call)
        if len(self._active) >= _MAX_ACTIVE or any(running.key == key for running in self._active):
            return None
        try:
            search = self._open(key)
        except torch.OutOfMemoryError:
            if self._active:
                return None
            raise
        self._active.append(_Running(key, search))
        return self._active[-1]

    def _advance(self, running: _Running, calls: list[TextCall]) -> None:
        """Enqueue a step; read rows that have ended, and put the search aside when there are no others."""
        try:
            if running.rows:
                if running.search.advance():
                    self._stats.decode_steps += not running.fresh  # the first is counted as prefill
                    running.fresh = False
                self._read(running, any(call.waiting and not call.ended for call in calls))
        except Exception as error:
            self._drop(running, error)
            return
        if not running.rows:
            self._active.remove(running)
            self._keep(running.key, running.search)

    def _read(self, running: _Running, others_wait: bool) -> None:
        """Read rows that have ended: when a call's are all among them, or others wait for a good part of the slots."""
        ended = running.search.ended()
        counts = Counter(running.rows[place][0] for place in ended)
        whole = any(running.counts[call] == count for call, count in counts.items())
        if not whole and not (others_wait and 2 * len(ended) >= running.key.slots):
            return
        running.search.fetch()
        for place in ended:
            call, row = running.rows[place]
            if not call.ended:
                try:
                    call.found[row] = running.search.result(place, call.options)
                except NotNumbersError:
                    call.error = ValueError(f"logits: NaN in row {row * call.mode.rows}")
            running.remove(place)

    def _drop(self, running: _Running, error: Exception | None = None) -> None:
        """Give up a search. Its rows end with ``error``; without one they wait again."""
        self._active.remove(running)
        with contextlib.suppress(Exception):  # what was enqueued may have failed
            running.search.settle()
        for call in running.counts:
            if error is not None:
                call.error = call.error or error
            else:
                rows = [row for of, row in running.rows.values() if of is call]
                call.waiting = sorted([*call.waiting, *rows])
