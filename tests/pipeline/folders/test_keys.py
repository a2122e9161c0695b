"""Sets of keys that are done, small in memory."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from gitfast.pipeline.folders.keys import KeySet

keys = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(keys), st.lists(keys), st.lists(keys))
def test_is_a_set(old, new, others):
    found = KeySet()
    found.load(array("q", old))
    for key in new:
        found.add(key)
    asked = old + new + others
    expected = [key in {*old, *new} for key in asked]
    assert found.contains(asked).tolist() == expected
    assert [key in found for key in asked] == expected
