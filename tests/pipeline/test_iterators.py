"""Items in groups, and values computed ahead of their use."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from gitfast.pipeline.iterators import grouped, map_ahead, prefetch

SOON = 30  # seconds until a test that waits for another thread fails


class Pulled:
    """Counts what has been taken of it; item ``fails_at`` is an error."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count, self.fails_at, self.taken = count, fails_at, 0
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        for i in range(self.count):
            self.threads.add(threading.get_ident())
            if i == self.fails_at:
                raise KeyError(i)
            self.taken += 1
            yield i


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gitfast-prefetch")]


class TestGrouped:
    def test_groups_end_at_the_size(self):
        assert list(grouped(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
        assert list(grouped(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
        assert list(grouped([], 3)) == []

    def test_items_weigh(self):
        assert list(grouped([1, 1, 5, 0, 3, 2], 4, lambda x: x)) == [[1, 1, 5], [0, 3, 2]]

    def test_no_more_is_taken_than_a_group_needs(self):
        items = Pulled(100)
        groups = grouped(items, 3)
        assert (next(groups), items.taken) == ([0, 1, 2], 3)
        assert (next(groups), items.taken) == ([3, 4, 5], 6)

    def test_what_came_before_an_error_comes_before_it(self):
        groups = grouped(Pulled(100, fails_at=4), 3)
        assert [next(groups), next(groups)] == [[0, 1, 2], [3]]
        with pytest.raises(KeyError):
            next(groups)
        with pytest.raises(KeyError):
            next(grouped(Pulled(100, fails_at=0), 3))

    def test_a_list_may_be_emptied(self):
        sizes = [(len(group), group.clear())[0] for group in grouped(range(5), 2)]
        assert sizes == [2, 2, 1]


class TestPrefetch:
    def test_values_in_order(self):
        for count in range(5):
            assert list(prefetch(str, range(count))) == [str(i) for i in range(count)]
        assert prefetch_threads() == []

    def test_the_next_value_is_computed_while_one_is_in_use(self):
        begun = [threading.Event() for _ in range(4)]
        go_on = threading.Event()

        def function(i: int) -> int:
            begun[i].set()
            assert i == 0 or go_on.wait(SOON)
            return i

        values = prefetch(function, range(4))
        assert next(values) == 0
        assert begun[1].wait(SOON), "nothing is computed meanwhile"
        go_on.set()
        assert next(values) == 1
        assert begun[2].wait(SOON)
        assert not begun[3].is_set(), "more than one ahead"
        values.close()

    def test_one_item_needs_no_thread(self):
        assert list(prefetch(lambda _: threading.get_ident(), [0])) == [threading.get_ident()]
        assert list(prefetch(lambda _: threading.get_ident(), [0, 1]))[1] != threading.get_ident()

    def test_items_are_taken_in_the_callers_thread_one_ahead(self):
        items = Pulled(100)
        values = prefetch(str, items)
        taken = [(next(values), items.taken)[1] for _ in range(5)]
        assert taken == [2, 3, 4, 5, 6]
        assert items.threads == {threading.get_ident()}
        values.close()

    @pytest.mark.parametrize("bad", range(4))
    def test_errors_come_in_their_place(self, bad):
        values = prefetch(lambda i: 1 // (i - bad), range(100))
        assert len([next(values) for _ in range(bad)]) == bad
        with pytest.raises(ZeroDivisionError):
            next(values)
        assert prefetch_threads() == []

    @pytest.mark.parametrize("bad", range(4))
    def test_errors_of_the_items_too(self, bad):
        values = prefetch(str, Pulled(100, fails_at=bad))
        assert [next(values) for _ in range(bad)] == [str(i) for i in range(bad)]
        with pytest.raises(KeyError):
            next(values)
        assert prefetch_threads() == []

    def test_closing_leaves_no_thread(self):
        begun, go_on = threading.Event(), threading.Event()

        def function(i: int) -> int:
            if i == 1:
                begun.set()
                go_on.wait(SOON)
            return i

        values = prefetch(function, itertools.count())
        next(values)
        assert begun.wait(SOON)
        assert len(prefetch_threads()) == 1
        go_on.set()
        values.close()
        assert prefetch_threads() == []

    def test_an_interrupt_of_the_items_is_raised_at_once(self):
        def items() -> Iterator[int]:
            yield 0
            raise KeyboardInterrupt

        values = prefetch(str, items())
        with pytest.raises(KeyboardInterrupt):
            next(values)
        assert prefetch_threads() == []


class TestMapAhead:
    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("ahead", [0, 1, 5, 100])
    def test_in_order(self, threads, ahead):
        assert list(map_ahead(lambda x: x * x, range(20), threads, ahead)) == [x * x for x in range(20)]
        assert list(map_ahead(lambda x: x, [], threads, ahead)) == []

    def test_a_bounded_number_is_taken(self):
        taken = itertools.count()
        values = map_ahead(lambda x: x, (next(taken) for _ in range(100)), 2, 3)
        assert next(values) == 0
        assert next(taken) == 4
        values.close()

    def test_several_are_computed_at_once(self):
        together = threading.Barrier(3)
        assert list(map_ahead(lambda x: together.wait(30) >= 0, range(6), 3, 2)) == [True] * 6

    def test_errors_in_their_place(self):
        def items():
            yield from (4, 2, 0, 1)
            raise KeyError("gone")

        values = map_ahead(lambda x: 4 // x, items(), 2, 10)
        assert [next(values), next(values)] == [1, 2]
        with pytest.raises(ZeroDivisionError):
            next(values)
        values = map_ahead(lambda x: x, items(), 2, 10)
        assert [next(values) for _ in range(4)] == [4, 2, 0, 1]
        with pytest.raises(KeyError):
            next(values)

    def test_closing_leaves_no_thread(self):
        values = map_ahead(lambda x: x, itertools.count(), 3, 5)
        next(values)
        values.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("gitfast-prefetch")]
