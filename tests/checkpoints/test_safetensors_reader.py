"""Safetensors files: what is read equals what the safetensors library saved; bad headers give one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from gitfast.checkpoints.safetensors_reader import read_safetensors
from gitfast.errors import CheckpointError

from support.tiers import examples

SAVED = save({"a": torch.zeros(3, 4), "b": torch.ones(5).half()})


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_equal_what_was_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.randn(3, 4).to(dtype), "odd": torch.randn(7).to(dtype), "scalar": torch.tensor(2.5)}
    save_file(state, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        kept = tensor if tensor.dtype == torch.float16 else tensor.float()
        np.testing.assert_array_equal(read[name].load(), kept.numpy())


def test_float32_is_a_view_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.randn(100)}, tmp_path / "x.safetensors")
    array = read_safetensors(tmp_path / "x.safetensors")["a"].load()
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_a_file_cut_after_opening_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(10_000)}, path)
    read = read_safetensors(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match="became shorter"):
        read["a"].load()


BIG = 1 << 62


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"1234567", "truncated: a ends at byte"),
        ({"a": entry()}, b"123456789", "1 bytes follow the last tensor"),
        ({"a": entry(shape=[3])}, b"12345678", "needs 12 bytes, data_offsets give 8"),
        ({"a": entry(shape=[BIG, BIG], offsets=[0, 8])}, b"12345678", "needs .* bytes, data_offsets give 8"),
        ({"a": entry(shape=[-2])}, b"12345678", "shape .* is not"),
        ({"a": entry(shape=[True, 2])}, b"12345678", "shape .* is not"),
        ({"a": entry(shape=[1] * 9, offsets=[0, 4])}, b"1234", "at most 8 positive integers"),
        ({"a": entry(shape=[0], offsets=[0, 0])}, b"", "shape .* is not"),
        ({"a": entry(offsets=[8, 0])}, b"12345678", "data_offsets give -8"),
        ({"a": entry(offsets=[0, 8.0])}, b"12345678", "are not two integers"),
        ({"a": entry(dtype="F128")}, b"12345678", "dtype 'F128' is not one of"),
        ({"a": entry(dtype=[])}, b"12345678", "is not one of"),
        ({"a": {"dtype": "F32"}}, b"12345678", "expected dtype, shape and data_offsets"),
        ({"a": entry(), "b": entry()}, b"12345678", "overlaps the tensor before it"),
        ({"a": entry(), "b": entry(offsets=[12, 20])}, b"1234567890abcdefghij", "leaves a gap before it"),
        ({"": entry()}, b"12345678", "tensor name ''"),
        ({"a\n": entry()}, b"12345678", "not printable"),
        ({"x" * 600: entry()}, b"12345678", "too long"),
        ({f"t{i}": entry() for i in range(5000)}, b"", "names 5000 tensors; at most"),
        ([1, 2], b"", "not a JSON object but list"),
        (b"{", b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "has a name twice"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b"[" * 60_000, b"", "nested too deeply"),
        (b"[" * 100_000, b"", "more than 65536 objects and lists"),
        (b'{"a": ' + b"9" * 4_000 + b"}", b"", "a: expected dtype, shape and data_offsets, got inf"),
        (
            b'{"a": {"dtype": "F32", "shape": [' + b"9" * 4_000 + b'], "data_offsets": [0, 4]}}',
            b"",
            "a: shape .inf. is not",
        ),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1' + b"0" * 4_000 + b"]}}",
            b"",
            "a: data_offsets .0, inf. are not two integers",
        ),
    ],
)
def test_bad_headers_are_described(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: (?s:.*){message}"):
        read_safetensors(write(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"1234", "4 bytes, at least 8 are needed"),
        ((1 << 63).to_bytes(8, "little"), "header of 9223372036854775808 bytes"),
        ((100).to_bytes(8, "little") + b"{}", "truncated: its header is 100 bytes"),
        (b"<!DOCTYPE html><html>", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{message}"):
        read_safetensors(tmp_path / "x.safetensors")


@settings(max_examples=examples(200), deadline=None)
@given(cut=st.integers(0, len(SAVED) - 1))
def test_any_truncation_is_an_error(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(SAVED[:cut])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        read_safetensors(path)


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data())
def test_any_damage_gives_tensors_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    damaged = bytearray(SAVED)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(SAVED) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        for tensor in read_safetensors(path).values():
            tensor.load()
    except CheckpointError as error:
        assert "damaged.safetensors" in str(error)  # noqa: PT017
