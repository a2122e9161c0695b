"""Files of torch.save: what is read equals what was saved, and what means harm is refused without running."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast.checkpoints.pickle_reader import read_pickle
from gitfast.errors import CheckpointError


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def with_pickle(path: Path, data: bytes) -> Path:
    """An archive as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    return path


def patched(path: Path, change: bytes, to: bytes) -> Path:
    """A saved file whose pickle has other bytes (of the same length), with a right checksum."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith("data.pkl"))
    assert records[name].count(change) == 1
    records[name] = records[name].replace(change, to)
    with zipfile.ZipFile(path, "w") as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_equal_what_was_saved(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    state = {"a": torch.randn(3, 4).to(dtype), "b.weight": torch.randn(7).to(dtype), "scalar": torch.tensor(2.5)}
    torch.save(state, tmp_path / "x.bin", pickle_protocol=protocol)
    read = read_pickle(tmp_path / "x.bin")
    assert list(read) == list(state)
    for name, tensor in state.items():
        kept = tensor if tensor.dtype == torch.float16 else tensor.float()
        np.testing.assert_array_equal(read[name].load(), kept.numpy())


def test_state_dict_of_a_module_with_parameters_and_buffers(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    read = read_pickle(save(module.state_dict(), tmp_path / "x.bin"))
    assert read.keys() == module.state_dict().keys()
    parameters = read_pickle(save(dict(module.named_parameters()), tmp_path / "y.bin"))
    np.testing.assert_array_equal(parameters["0.weight"].load(), module[0].weight.detach().numpy())


def test_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"whole": base, "transposed": base.T, "part": base[1:3, 2:5], "column": base[:, 3], "again": base}
    read = read_pickle(save(state, tmp_path / "x.bin"))
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name].load(), tensor.numpy())


def test_float32_is_a_view_of_the_file(tmp_path: Path) -> None:
    read = read_pickle(save({"a": torch.randn(100)}, tmp_path / "x.bin"))
    array = read["a"].load()
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_microsoft_files_keep_their_tensors_under_model(tmp_path: Path) -> None:
    assert list(read_pickle(save({"model": {"a": torch.ones(2)}, "iteration": 5}, tmp_path / "model.pt"))) == ["a"]


class Harm:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch harm",)),
        (eval, ("open('harm', 'w')",)),
        (getattr, ("", "join")),
        (open, ("harm", "w")),
        (np.zeros, (1 << 40,)),
    ],
    ids=["system", "eval", "getattr", "open", "numpy"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused(tmp_path: Path, function: Any, arguments: Any, protocol: int, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = with_pickle(tmp_path / "x.bin", pickle.dumps({"a": Harm(function, *arguments)}, protocol))
    with pytest.raises(CheckpointError, match=r"x\.bin: refused: its pickle names"):
        read_pickle(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated pickle"),
        (b"\x80\x02}", "truncated pickle"),
        (b"\x80\x02}.", "expected a dict of tensors"),
        (b"\x80\x02K\x05.", "expected a dict of tensors, got 5"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x05s.", "a: expected a tensor, got 5"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "truncated pickle"),
        (b"\x80\x02h\x05.", "damaged pickle"),
        (b"\x80\x02s.", "damaged pickle"),
        (b"\x80\x02}}}s.", "damaged pickle"),
        (b"\x80\x02ccollections\nOrderedDict\n)R(s.", "damaged pickle"),
        (b"\x80\x02(((t.", "expected a dict of tensors"),
        (b"\x80\x02i__builtin__\neval\n.", "opcode b'i'"),
        (b"\x80\x02cposix\nsystem\n.", "refused: its pickle names 'posix.system'"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "damaged pickle"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "damaged pickle"),
        (b"\x80\x02K\x05Q.", "damaged pickle"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "damaged pickle"),
    ],
)
def test_damaged_pickles_are_described(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.bin: .*{message}"):
        read_pickle(with_pickle(tmp_path / "x.bin", data))


def test_a_huge_memo_index_costs_nothing(tmp_path: Path) -> None:
    data = b"\x80\x02}r\xff\xff\xff\x7fX\x01\x00\x00\x00aK\x05s."
    with pytest.raises(CheckpointError, match="expected a tensor"):
        read_pickle(with_pickle(tmp_path / "x.bin", data))


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        (b"K\x03K\x04\x86", b"K\x03K\x05\x86", "exceeds its storage of 12 elements"),  # shape
        (b"K\x04K\x01\x86", b"K\x05K\x01\x86", "exceeds its storage of 12 elements"),  # strides
        (b"QK\x00K\x03", b"QK\x01K\x03", "exceeds its storage of 12 elements"),  # offset
        (b"K\x0ctq", b"K\x0dtq", "expected 52 bytes, the archive holds 48"),  # elements of the storage
        (b"K\x03K\x04\x86", b"K\x00K\x04\x86", "no elements"),
        (b"FloatStorage", b"Other_thing_", "refused: its pickle names 'torch.Other_thing_'"),
        (b"storageq", b"Storageq", "damaged pickle"),
    ],
)
def test_tensors_that_leave_their_storage_are_refused(tmp_path: Path, change: bytes, to: bytes, message: str) -> None:
    path = patched(save({"a": torch.zeros(3, 4)}, tmp_path / "x.bin"), change, to)
    with pytest.raises(CheckpointError, match=message):
        read_pickle(path)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_text("<html>not found</html>")
    (tmp_path / "empty.bin").write_bytes(b"")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    messages = {
        "text": "not a zip archive",
        "empty": "empty",
        "old": "format of torch before 1.6",
        "none": "No such file",
    }
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=rf"{name}\.bin: .*{message}"):
            read_pickle(tmp_path / f"{name}.bin")


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))  # a bomb: 64 KB in the file
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        read_pickle(tmp_path / "x.bin")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="two records of one name"):
        read_pickle(tmp_path / "x.bin")


def test_a_changed_pickle_fails_its_checksum(tmp_path: Path) -> None:
    path = save({"abcdefgh": torch.zeros(1)}, tmp_path / "x.bin")
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abcdefgx"))
    with pytest.raises(CheckpointError, match="checksum"):
        read_pickle(path)


def saved_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3, 4), "b": torch.ones(5).half()}, buffer)
    return buffer.getvalue()


SAVED = saved_bytes()


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, len(SAVED) - 1))
def test_any_truncation_is_an_error(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.bin"
    path.write_bytes(SAVED[:cut])
    with pytest.raises(CheckpointError, match=r"cut\.bin"):
        read_pickle(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_gives_tensors_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    damaged = bytearray(SAVED)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(SAVED) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        for tensor in read_pickle(path).values():
            tensor.load()
    except CheckpointError as error:
        assert "damaged.bin" in str(error)  # noqa: PT017


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_pickle_gives_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = with_pickle(tmp_path_factory.getbasetemp() / "random.bin", b"\x80\x02" + data)
    with pytest.raises(CheckpointError, match=r"random\.bin"):
        read_pickle(path)


def test_a_directory_that_claims_to_be_huge(tmp_path: Path) -> None:
    data = bytearray(SAVED)
    end = data.rindex(b"PK\x06\x06")  # torch writes the record of large archives
    data[end + 40 : end + 48] = struct.pack("<Q", 1 << 40)
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or truncated zip archive"):
        read_pickle(tmp_path / "x.bin")
