"""Native types and functions, however they are made and called: an error, never memory that nobody owns."""

from __future__ import annotations

import copy
import copyreg
import ctypes
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gitfast import _C, ops

from support.bounded import outcome
from support.cuda.lent import FLOAT, ManagedTensor, new_capsule
from support.processes import run_python
from support.tiny_model import make_engine, make_model, random_pixels

CPU = 1
TYPES = [value for value in vars(_C).values() if isinstance(value, type)]
ARGUMENTS = {"advance": (np.ones((1, 9), np.float32),), "keys_values": (0,), "add": (None, [1], {}), "cancel": (0,)}
ARGUMENTS |= {name: (np.ones((1, 3, 8, 8), np.float32),) for name in ("encode", "features")}
ARGUMENTS |= {"generate": ([None], [[1]], {}), "attend": (None, [1])}
ARGUMENTS |= {name: ([None], [[1]]) for name in ("score", "logits")}


def methods(native: type) -> list[str]:
    return [name for name in dir(native) if name == "__len__" or not name.startswith("_")]


@pytest.mark.parametrize("native", TYPES, ids=lambda native: native.__name__)
def test_an_object_of_new_alone_has_no_methods(native: type) -> None:
    names = methods(native)
    assert names
    for name in names:
        arguments = () if native is _C.CancelFlag else ARGUMENTS.get(name, ())
        with pytest.raises(TypeError, match=f"^{native.__name__}: the object was never initialised"):
            use(native.__new__(native), name, arguments)


def use(value: object, name: str, arguments: tuple[Any, ...]) -> None:
    """Read a property, or call a method."""
    attribute = getattr(value, name)
    attribute(*arguments)


def test_every_type_is_tried() -> None:
    names = {"CpuEngine", "Decoding", "Prefix", "CancelFlag", "ThreadPool", "PackedWeight", "PackedPrefix", "Search"}
    assert {native.__name__ for native in TYPES} >= names


@pytest.mark.parametrize("native", TYPES, ids=lambda native: native.__name__)
def test_methods_of_something_else(native: type) -> None:
    for name in methods(native):
        attribute = getattr(native, name)
        for value in (None, 5, "x", object(), np.ones(3, np.float32)):
            with pytest.raises(TypeError):
                use_of(attribute, value, ARGUMENTS.get(name, ()))


def use_of(attribute: Any, value: object, arguments: tuple[Any, ...]) -> None:
    """Read a property of a value of another type, or call a method on it."""
    if isinstance(attribute, property):
        attribute.fget(value)
    else:
        attribute(value, *arguments)


@pytest.mark.parametrize("native", TYPES, ids=lambda native: native.__name__)
def test_no_object_is_copied_or_pickled(native: type) -> None:
    """Protocols 0 and 1 of pickle call the base class of bound ones, which ended the process."""
    value = native.__new__(native)
    with pytest.raises(TypeError, match=f"^cannot pickle '{native.__name__}' object"):
        copy.copy(value)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match=f"^cannot pickle '{native.__name__}' object"):
            pickle.dumps(value, protocol)


@pytest.mark.parametrize("native", TYPES, ids=lambda native: native.__name__)
def test_reduction_past_our_own_method(native: type) -> None:
    """Either nothing that can be made again, or an object that was never initialised; the base class is never made."""
    value = native.__new__(native)
    base = native.__mro__[1]
    for protocol in (0, 1):
        with pytest.raises(TypeError, match="cannot"):
            copyreg._reduce_ex(value, protocol)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="cannot"):
        object.__reduce__(value)
    for make in (base, lambda: base.__new__(base), type("Bare", (base,), {})):
        with pytest.raises(TypeError, match=r"cannot create '.*' instances"):
            make()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot"):
            object.__reduce_ex__(value, protocol)
    for made in (copyreg.__newobj__(native), base.__new__(native)):  # type: ignore[attr-defined]
        for name in methods(native):
            with pytest.raises(TypeError, match="the object was never initialised"):
                use(made, name, ARGUMENTS.get(name, ()) if native is not _C.CancelFlag else ())
    with pytest.raises(TypeError):
        copyreg._reconstructor(native, base, None)  # type: ignore[attr-defined]


def test_a_class_of_python_over_a_native_one() -> None:
    class Pool(ops.ThreadPool):
        pass

    assert Pool(2).num_threads == 2


def test_an_object_of_new_alone_is_no_argument() -> None:
    def new(native: type) -> Any:
        return native.__new__(native)

    model = make_model()
    engine = make_engine(model)._native
    x = np.ones((2, 4), np.float32)
    weight = ops.PackedWeight(np.ones((3, 4), np.float32))
    calls: list[Callable[[], object]] = [
        lambda: ops.linear(x, new(ops.PackedWeight)),
        lambda: ops.linear(x, weight, pool=new(ops.ThreadPool)),
        lambda: ops.prefix_attention(np.ones((1, 2, 4), np.float32), new(ops.PackedPrefix)),
        lambda: engine.generate([new(_C.Prefix)], [[2]], {"eos_token_id": 3}),
        lambda: engine.attend(new(_C.Prefix), [2]),
        lambda: engine.decoding().add(new(_C.Prefix), [2], {"eos_token_id": 3}),
        lambda: engine.encode(random_pixels(1, 3, 32, 32), cancel=new(_C.CancelFlag)),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"^\w+: the object was never initialised"):
            call()


def test_an_object_whose_constructor_failed_has_no_methods() -> None:
    new = ops.PackedWeight.__new__(ops.PackedWeight)
    with pytest.raises(ValueError, match="weight: expected K >= 1"):
        new.__init__(np.ones((3, 0), np.float32))
    with pytest.raises(TypeError, match="PackedWeight: the object was never initialised"):
        _ = new.shape
    new.__init__(np.ones((3, 4), np.float32))
    new.__init__(np.ones((5, 4), np.float32))  # an object is made once
    assert new.shape == (3, 4)


class Lender:
    """float32 in the memory of this process, with the sizes and strides it is told to claim."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, **fields: int) -> None:
        self._memory = np.arange(64, dtype=np.float32)
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        self._tensor = ManagedTensor(self._memory.ctypes.data, CPU, 0, len(shape), FLOAT, 32, 1, self._shape)
        if self._strides is not None:
            self._tensor.strides = self._strides
        for name, value in fields.items():
            setattr(self._tensor, name, value)

    def __dlpack__(self) -> object:
        return new_capsule(ctypes.addressof(self._tensor), b"dltensor", None)


@pytest.mark.parametrize(
    ("lent", "message"),
    [
        (Lender((-1, 4)), "expected sizes of 0 or more, got -1"),
        (Lender((2, -4), (4, 1)), "expected sizes of 0 or more, got -4"),
        (Lender((-1, -4)), "expected sizes of 0 or more"),
        (Lender((2, 4), ndim=-1), "expected 0 or more dimensions, got -1"),
        (Lender((2, 4), ndim=9), "more than 8 dimensions"),
        (Lender((2**32, 2**32), (0, 0)), "more elements than memory can hold"),
        (Lender((2**62, 4), (0, 1)), "more elements than memory can hold"),
        (Lender((2**63 - 1, 4)), "more elements than memory can hold"),
        (Lender((2, 4), (2**62, 1)), "strides that reach further than memory does"),
        (Lender((2, 4), (-(2**63), 1)), "strides that reach further than memory does"),
        (Lender((2, 4), (-4, 1)), "expected rows of consecutive elements"),
        (Lender((2, 4), data=0), "__dlpack__ gave no memory"),
        (Lender((2, 4), data=0x1001), "not aligned"),
    ],
)
def test_sizes_that_memory_cannot_have_are_refused(lent: Lender, message: str) -> None:
    weight = ops.PackedWeight(np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match=f"^x: .*{message}"):
        ops.linear(lent, weight)


def test_lent_arrays_are_read_by_their_strides() -> None:
    weight = ops.PackedWeight(np.eye(4, dtype=np.float32))
    np.testing.assert_array_equal(ops.linear(Lender((2, 4)), weight), [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(ops.linear(Lender((2, 4), (8, 1)), weight), [[0, 1, 2, 3], [8, 9, 10, 11]])
    assert ops.linear(Lender((0, 4)), weight).shape == (0, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "w8a8"])
def test_a_product_of_nothing_is_nothing(dtype: str) -> None:
    """By a process of its own: sizes that overflow ended it."""
    code = f"""
import numpy as np
from numpy.lib.stride_tricks import as_strided
from gitfast import ops
for isa in ops.available_isas():
    empty = ops.PackedWeight(np.empty((0, 8), np.float32), dtype={dtype!r})
    x = as_strided(np.zeros(8, np.float32), (2**45, 8), (0, 4))
    assert ops.linear(x, empty, isa=isa).shape == (2**45, 0)
    some = ops.PackedWeight(np.ones((3, 8), np.float32), dtype={dtype!r})
    assert ops.linear(np.empty((0, 8), np.float32), some, isa=isa).shape == (0, 3)
    for weight in empty, some:
        try:
            ops.linear(as_strided(np.zeros(1, np.float32), (2**58, 1), (0, 4)), weight, isa=isa)
        except (ValueError, MemoryError) as error:
            print(error)
"""
    done = run_python(code, check=True)
    assert set(done.stdout.splitlines()) == {"x: more elements than memory can hold"}


def test_lengths_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="longest: expected 0 to 1048576, got 2147483647"):
        _C.length_norms({}, 2**31 - 1)
    with pytest.raises(ValueError, match="longest: expected 0 to 1048576, got -1"):
        _C.length_norms({}, -1)
    assert len(_C.length_norms({}, 3)) == 4


def test_keys_of_more_samples_than_there_can_be() -> None:
    options = {"do_sample": True, "eos_token_id": 3}
    assert len(_C.sample_keys({**options, "num_return_sequences": 5}, [[2], [4]])) == 10
    result = outcome(_C.sample_keys, {**options, "num_return_sequences": 2**31 - 1}, [[2]] * 100)
    assert "num_return_sequences: expected 1 to 4096" in str(result)


def test_counts_of_threads_are_bounded() -> None:
    for count in (-1, 2**31 - 1):
        with pytest.raises(ValueError, match="num_threads: expected"):
            ops.ThreadPool(count)
