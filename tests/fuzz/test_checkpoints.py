"""Mutated files of checkpoints and adapters through their readers, each written into a folder of its own."""

from __future__ import annotations

import encodings.cp437  # noqa: F401  # zipfile decodes old names with it
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from gitfast.checkpoints.adapter import apply_adapter
from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.checkpoints.pickle_reader import read_pickle
from gitfast.checkpoints.safetensors_reader import read_safetensors
from gitfast.errors import GitfastError
from gitfast.inputs.tokenizer import Tokenizer

from support.fuzzing import Mutation, fuzz
from support.tiny_checkpoint import VOCAB, write_checkpoint

OPCODES = b".\x80\x95N\x88\x89JKM\x8aGX\x8cUTCB]})\x85\x86\x87(tlaesuqr\x94hjc\x93QRbi0\x81"
ODD_VALUES: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, float("nan"), "", "\ud800", "x" * 600]
ODD_VALUES += [[], {}, [[[]]], {"a": {}}, ["a"] * 50, {"type": "Replace"}, {"content": "[UNK]"}]


def load(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        tensor.load()


def changed_json(data: bytearray, rng: np.random.Generator) -> bytes:
    """One value anywhere in a JSON object replaced, repeated or dropped."""
    try:
        values = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return bytes(data)
    place = values
    while isinstance(place, (dict, list)) and place:
        key = list(place)[rng.integers(len(place))] if isinstance(place, dict) else int(rng.integers(len(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.integers(3) == 0:
            if rng.integers(4) == 0:
                del place[key]
            else:
                place[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
            break
        place = place[key]
    return json.dumps(values).encode()


def changed_header(data: bytearray, rng: np.random.Generator) -> bytes:
    """The JSON header of a safetensors file changed, its length right."""
    length = int.from_bytes(data[:8], "little")
    header = changed_json(bytearray(data[8 : 8 + length]), rng)
    return len(header).to_bytes(8, "little") + header + bytes(data[8 + length :])


def changed_opcodes(data: bytearray, rng: np.random.Generator) -> bytes:
    """An opcode put somewhere, or a part of the pickle repeated."""
    place = int(rng.integers(len(data) + 1))
    if rng.integers(2):
        data[place:place] = bytes([OPCODES[rng.integers(len(OPCODES))]])
    else:
        end = place + int(rng.integers(1, 60))
        data[end:end] = data[place:end] * int(rng.integers(1, 200))
    return bytes(data)


def saved(**options: Any) -> bytes:
    buffer = io.BytesIO()
    state = {"a": torch.zeros(3, 4), "b": torch.ones(5).half(), "c": torch.nn.Parameter(torch.ones(2))}
    torch.save({"model": state, "epoch": 3}, buffer, **options)
    return buffer.getvalue()


def pickles() -> list[bytes]:
    return [zipfile.ZipFile(io.BytesIO(saved(pickle_protocol=p))).read("archive/data.pkl") for p in (2, 4)]


def in_archive(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, size in (("0", 48), ("1", 10), ("2", 8)):
            archive.writestr(f"archive/data/{key}", bytes(size))
    return buffer.getvalue()


def read_file(
    path: Path, read: Callable[[Path], object], wrap: Callable[[bytes], bytes] = bytes
) -> Callable[..., object]:
    def attempt(data: bytes) -> object:
        path.write_bytes(wrap(data))
        return read(path)

    return attempt


def test_safetensors(tmp_path: Path) -> None:
    seeds = [save({"a": np.zeros((3, 4), np.float32), "b": np.ones(5, np.float16)}, {"format": "pt"})]
    read = read_file(tmp_path / "x.safetensors", lambda path: load(read_safetensors(path)))
    assert fuzz(read, seeds, GitfastError, [changed_header], folder=tmp_path).executions


@pytest.mark.parametrize("form", ["zip", "pickle", "older"])
def test_torch(form: str, tmp_path: Path) -> None:
    seeds, wrap = [saved()], bytes
    if form == "pickle":
        seeds, wrap = pickles(), in_archive
    elif form == "older":
        seeds = [saved(pickle_protocol=p, _use_new_zipfile_serialization=False) for p in (2, 4)]
    read = read_file(tmp_path / "x.bin", lambda path: load(read_pickle(path)), wrap)
    mutations: list[Mutation] = [] if form == "zip" else [changed_opcodes]
    assert fuzz(read, seeds, GitfastError, mutations, folder=tmp_path).executions


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_configurations(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    values = {"eos_token_id": [3, 5], "num_beams": 2, "bad_words_ids": [[4]], "temperature": 0.5, "min_length": 2}
    seeds = [(folder / "config.json").read_bytes() if name == "config.json" else json.dumps(values).encode()]
    read = read_file(folder / name, lambda path: open_checkpoint(path.parent))
    outcome = fuzz(read, seeds, GitfastError, [changed_json], folder=folder)
    assert 0 < outcome.accepted < outcome.executions


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.txt"])
def test_tokenizers(name: str, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB))
    if name == "tokenizer.json":
        BertTokenizer(str(tmp_path / "vocab.txt")).backend_tokenizer.save(str(tmp_path / name))
        seeds = [(tmp_path / name).read_bytes()]
    elif name == "vocab.txt":
        seeds = [(tmp_path / name).read_bytes()]
    else:
        token = {"content": "<x>", "special": True, "lstrip": True}
        config = {"do_lower_case": False, "cls_token": "[CLS]", "added_tokens_decoder": {str(len(VOCAB)): token}}
        seeds = [json.dumps(config if "config" in name else {"<x>": len(VOCAB), "y": len(VOCAB) + 1}).encode()]

    def read(path: Path) -> object:
        tokenizer = Tokenizer.from_folder(path.parent)
        return tokenizer.decode(tokenizer.prompt("A red, <x> square? [SEP] " + "x" * 300))

    mutations = [] if name == "vocab.txt" else [changed_json]
    outcome = fuzz(read_file(tmp_path / name, read), seeds, GitfastError, mutations, folder=tmp_path)
    assert 0 < outcome.accepted < outcome.executions


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters(name: str, tmp_path: Path) -> None:
    base = open_checkpoint(write_checkpoint(tmp_path / "base"))
    layer = "git.encoder.layer.0.attention.self.query"
    outputs, inputs = load_file(tmp_path / "base" / "model.safetensors")[f"{layer}.weight"].shape
    folder = tmp_path / "adapter"
    folder.mkdir()
    matrices = {"lora_A": np.ones((2, inputs), np.float32), "lora_B": np.ones((outputs, 2), np.float32)}
    weights = save({f"base_model.model.{layer}.{part}.weight": x for part, x in matrices.items()})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {r".*\.(query|key)": 3, "[a-z]+": 5}}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": weights}
    for file, data in files.items():
        (folder / file).write_bytes(data)
    mutation: Mutation = changed_json if name.endswith("config.json") else changed_header
    read = read_file(folder / name, lambda path: apply_adapter(path.parent, base).weights[f"{layer}.weight"])
    assert fuzz(read, [files[name]], GitfastError, [mutation], folder=tmp_path).executions
