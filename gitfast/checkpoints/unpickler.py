"""Pickles of tensors, interpreted without running anything and in work linear in their size.

``pickle.Unpickler``, even with a restricted ``find_class``, allocates gigabytes for ten bytes of input (a large memo
index) or hashes for hours (nested tuples as keys). Here only the opcodes of plain data are known; a global name is
looked up in the table below, never imported; and what can be "called" is in that table, all of it ours.

Each opcode does a bounded amount of work or spends more of the budget: a value is looked into only after its type and
length are known, since a value that was memoised can stand in any number of places, nested to any depth.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gitfast.checkpoints.files import FormatError
from gitfast.checkpoints.stored_tensor import MAX_DIMS

MAX_PICKLE_BYTES = 4 << 20  # the largest published checkpoint's has 0.1 MB
MAX_OPCODES = 1_000_000  # 4,096 tensors take 0.2 million, with the moments of their optimizer four times as many
_MAX_TEXT = 1_024  # for names and keys that are looked up
_MAX_ARGUMENTS = 8
_MAX_INT_KEY = 1 << 20  # as keys, larger ones could be chosen so that their hashes collide


@dataclass(frozen=True)
class StorageReference:
    """A storage that a pickle refers to by key; the container of the pickle knows its place in the file."""

    key: str
    dtype: str
    numel: int
    start: int = 0  # a view of another storage begins at this element of it
    view_numel: int | None = None

    @property
    def available(self) -> int:
        """Elements from ``start`` on that a tensor may use."""
        return self.numel if self.view_numel is None else self.view_numel


@dataclass(frozen=True)
class TensorReference:
    """A tensor inside a storage; all its elements lie inside it."""

    storage: StorageReference
    offset: int  # in elements, from the start of the storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A global name of the pickle: the name alone, and the meaning of a call."""

    name: str
    call: Callable[[Unpickler, tuple[Any, ...]], Any] | None = None
    dtype: str | None = None  # for a class of storages


class Unpickler:
    """An interpreter of the opcodes that dicts, lists, tuples, numbers, strings and tensors are made of.

    The stack of the innermost MARK is ``stack``; those outside it wait in ``marked``.
    """

    def __init__(self, data: bytes, max_opcodes: int = MAX_OPCODES) -> None:
        self.data = data
        self.position = 0
        self.budget = max_opcodes
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageReference] = {}

    def load(self) -> Any:
        """Return the value; afterwards ``position`` is behind it.

        Raises:
            FormatError: the pickle is damaged, takes too much work, or holds values that no state dict does.
        """
        try:
            while (opcode := self.take(1)) != b".":
                if opcode not in _OPCODES:
                    raise FormatError(f"its pickle has opcode {opcode!r}, which no state dict needs")
                self.spend(1)
                _OPCODES[opcode](self)
            return self.stack.pop()
        except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise FormatError(f"damaged pickle at byte {self.position}: {type(error).__name__}") from None

    def spend(self, steps: int) -> None:
        self.budget -= steps
        if self.budget < 0:
            raise FormatError("its pickle takes too many steps for a state dict")

    def take(self, n: int) -> bytes:
        taken = self.data[self.position : self.position + n]
        if len(taken) < n:
            raise FormatError("truncated pickle")
        self.position += n
        return taken

    def integer(self, n: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(n), "little", signed=signed)

    def text(self, n: int) -> str:
        return str(self.take(n), "utf-8")

    def line(self) -> str:
        end = self.data.index(b"\n", self.position, self.position + _MAX_TEXT)
        return str(self.take(end + 1 - self.position)[:-1], "utf-8")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, n: int) -> tuple[Any, ...]:
        """Pop the last ``n`` values, in the order they were pushed."""
        if len(self.stack) < n:
            raise IndexError
        values = tuple(self.stack[len(self.stack) - n :])
        del self.stack[len(self.stack) - n :]
        return values

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Pop the values since the last MARK."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        keys = values[::2]
        if type(self.stack[-1]) is not dict or len(values) % 2 or not all(map(_is_key, keys)):
            raise TypeError
        self.stack[-1].update(zip(keys, values[1::2], strict=True))

    def find_global(self, module: Any, name: Any) -> None:
        _require(_is_text(module) and _is_text(name))
        full = f"{module}.{name}"
        if full not in _GLOBALS:
            raise FormatError(f"refused: its pickle names {reprlib.repr(full)}; a state dict of tensors does not")
        self.push(_GLOBALS[full])

    def persistent(self) -> None:
        """Read a storage: ("storage", class, key, device it was on, number of elements, perhaps a view)."""
        saved = self.stack.pop()
        _require(type(saved) is tuple and 5 <= len(saved) <= 6)
        tag, kind, key, _, numel = saved[:5]
        _require(_is_text(tag) and tag == "storage" and type(kind) is _Global and kind.dtype is not None)
        _require(_is_text(key) and _is_size(numel))
        storage = StorageReference(key, kind.dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise FormatError(f"storage {reprlib.repr(key)} is given two sizes or dtypes")
        if len(saved) == 6 and saved[5] is not None:
            storage = _view(storage, saved[5])
        self.push(storage)

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        _require(type(function) is _Global and function.call is not None)
        _require(type(arguments) is tuple and len(arguments) <= _MAX_ARGUMENTS)
        self.push(function.call(self, arguments))

    def build(self) -> None:
        """Set the state of an object: for a dict, the module versions that torch attaches and nobody needs."""
        target, _ = self.pop(2)
        _require(type(target) is dict)
        self.push(target)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


def _require(condition: bool) -> None:
    if not condition:
        raise TypeError


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= _MAX_TEXT


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_key(value: Any) -> bool:
    return type(value) is str or (type(value) is int and 0 <= value < _MAX_INT_KEY)


def _view(storage: StorageReference, view: Any) -> StorageReference:
    """Return the part of a storage named by (key, offset, elements), as in files of torch before 0.4."""
    _require(type(view) is tuple and len(view) == 3 and _is_text(view[0]) and _is_size(view[1]) and _is_size(view[2]))
    if view[1] + view[2] > storage.numel:
        raise FormatError(f"a view of storage {reprlib.repr(storage.key)} exceeds its {storage.numel} elements")
    return StorageReference(storage.key, storage.dtype, storage.numel, view[1], view[2])


def _rebuild_tensor(_: Unpickler, arguments: tuple[Any, ...]) -> TensorReference:
    """Build the tensor of ``torch._utils._rebuild_tensor_v2``, if all of it lies inside its storage."""
    storage, offset, shape, strides = arguments[:4]
    _require(type(storage) is StorageReference and type(shape) is tuple and type(strides) is tuple)
    _require(len(shape) == len(strides) <= MAX_DIMS and all(map(_is_size, (offset, *shape, *strides))))
    if 0 in shape:
        raise FormatError(f"a tensor of shape {shape} has no elements")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= storage.available or math.prod(shape) > storage.available:
        raise FormatError(
            f"a tensor of shape {reprlib.repr(shape)}, strides {reprlib.repr(strides)} and offset {offset} exceeds "
            f"its storage of {storage.available} elements"
        )
    return TensorReference(storage, storage.start + offset, shape, strides)


def _rebuild_parameter(_: Unpickler, arguments: tuple[Any, ...]) -> TensorReference:
    _require(len(arguments) >= 1 and type(arguments[0]) is TensorReference)
    return arguments[0]


def _ordered_dict(unpickler: Unpickler, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Make an empty dict or, as Python 2 wrote it, one from a list of [key, value]."""
    if arguments == ():
        return {}
    (items,) = arguments
    _require(type(items) is list)
    unpickler.spend(len(items))
    _require(all(type(item) in (list, tuple) and len(item) == 2 and _is_key(item[0]) for item in items))
    return dict(items)


def _counter(_: Unpickler, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    _require(len(arguments) == 1 and type(arguments[0]) is dict)
    return arguments[0]


def _size(_: Unpickler, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    _require(len(arguments) == 1 and type(arguments[0]) is tuple)
    return arguments[0]


def _opaque(_: Unpickler, arguments: tuple[Any, ...]) -> None:
    """Return a placeholder for a value that nobody needs, such as the device of an optimizer's state."""


_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
_GLOBALS = {
    known.name: known
    for known in (
        _Global("collections.OrderedDict", _ordered_dict),
        _Global("collections.Counter", _counter),
        _Global("torch.Size", _size),
        _Global("torch.device", _opaque),
        _Global("torch._utils._rebuild_tensor", _rebuild_tensor),
        _Global("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        _Global("torch._utils._rebuild_parameter", _rebuild_parameter),
        *(_Global(f"torch.{kind}Storage", dtype=dtype) for kind, dtype in _STORAGES.items()),
        *(_Global(f"torch.{dtype}") for dtype in _STORAGES.values()),
    )
}

_OPCODES: dict[bytes, Callable[[Unpickler], Any]] = {
    b"\x80": lambda u: u.take(1),  # PROTO
    b"\x95": lambda u: u.take(8),  # FRAME
    b"N": lambda u: u.push(None),
    b"\x88": lambda u: u.push(True),
    b"\x89": lambda u: u.push(False),
    b"J": lambda u: u.push(u.integer(4, signed=True)),  # BININT
    b"K": lambda u: u.push(u.integer(1)),  # BININT1
    b"M": lambda u: u.push(u.integer(2)),  # BININT2
    b"\x8a": lambda u: u.push(u.integer(u.integer(1), signed=True)),  # LONG1
    b"G": lambda u: u.push(struct.unpack(">d", u.take(8))[0]),  # BINFLOAT
    b"X": lambda u: u.push(u.text(u.integer(4))),  # BINUNICODE
    b"\x8c": lambda u: u.push(u.text(u.integer(1))),  # SHORT_BINUNICODE
    b"\x8d": lambda u: u.push(u.text(u.integer(8))),  # BINUNICODE8
    b"U": lambda u: u.push(u.text(u.integer(1))),  # SHORT_BINSTRING, of Python 2
    b"T": lambda u: u.push(u.text(u.integer(4))),  # BINSTRING, of Python 2
    b"C": lambda u: u.push(u.take(u.integer(1))),  # SHORT_BINBYTES
    b"B": lambda u: u.push(u.take(u.integer(4))),  # BINBYTES
    b"]": lambda u: u.push([]),
    b"}": lambda u: u.push({}),
    b")": lambda u: u.push(()),
    b"\x85": lambda u: u.push(u.pop(1)),  # TUPLE1
    b"\x86": lambda u: u.push(u.pop(2)),  # TUPLE2
    b"\x87": lambda u: u.push(u.pop(3)),  # TUPLE3
    b"(": lambda u: u.mark(),
    b"t": lambda u: u.push(tuple(u.pop_mark())),  # TUPLE
    b"l": lambda u: u.push(u.pop_mark()),  # LIST
    b"a": lambda u: u.append(list(u.pop(1))),  # APPEND
    b"e": lambda u: u.append(u.pop_mark()),  # APPENDS
    b"s": lambda u: u.set_items(list(u.pop(2))),  # SETITEM
    b"u": lambda u: u.set_items(u.pop_mark()),  # SETITEMS
    b"q": lambda u: u.put(u.integer(1)),  # BINPUT
    b"r": lambda u: u.put(u.integer(4)),  # LONG_BINPUT
    b"\x94": lambda u: u.put(len(u.memo)),  # MEMOIZE
    b"h": lambda u: u.push(u.memo[u.integer(1)]),  # BINGET
    b"j": lambda u: u.push(u.memo[u.integer(4)]),  # LONG_BINGET
    b"c": lambda u: u.find_global(u.line(), u.line()),  # GLOBAL
    b"\x93": lambda u: u.find_global(*u.pop(2)),  # STACK_GLOBAL
    b"Q": lambda u: u.persistent(),  # BINPERSID
    b"R": lambda u: u.reduce(),  # REDUCE
    b"b": lambda u: u.build(),  # BUILD
}
