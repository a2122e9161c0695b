"""``gitfast convert``: what is written opens to the same tensors, here and in transformers."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import gitfast
from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.checkpoints.convert import save_checkpoint
from gitfast.cli import main
from gitfast.errors import CheckpointError

from support.bounded import outcome
from support.tiny_checkpoint import random_image, write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", num_image_with_embedding=2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_rounded_as_torch_rounds(source: Path, tmp_path: Path, dtype: str) -> None:
    save_checkpoint(open_checkpoint(source), tmp_path / "out", dtype)
    original, written = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == original.keys()
    for name, values in original.items():
        assert torch.equal(written[name], values.to(getattr(torch, dtype)))
    assert open_checkpoint(tmp_path / "out").config == open_checkpoint(source).config


def test_bfloat16_of_special_values(source: Path, tmp_path: Path) -> None:
    weights = load_file(source / "model.safetensors")
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38, -0.0, 1e-40, 1.00390625, 1.01171875])
    weights["output.bias"][: len(special)] = special
    torch.save(weights, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    save_checkpoint(open_checkpoint(source), tmp_path / "out", "bfloat16")
    written = load_file(tmp_path / "out" / "model.safetensors")["output.bias"][: len(special)]
    torch.testing.assert_close(written, special.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_transformers_loads_it(source: Path, tmp_path: Path) -> None:
    from transformers import GitForCausalLM

    save_checkpoint(open_checkpoint(source), tmp_path / "out")
    model, report = GitForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, values in open_checkpoint(source).weights.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), values)


def test_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [random_image(0), random_image(1)]
    out = tmp_path / "out"
    assert main(["convert", str(source / "model.safetensors"), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert gitfast.load(out).caption(frames) == gitfast.load(source).caption(frames)
    assert main(["convert", str(source), str(out)]) == 1
    assert "holds a model already" in capsys.readouterr().err


def test_missing_files_are_made_up_or_missed(source: Path, tmp_path: Path) -> None:
    (source / "preprocessor_config.json").unlink()
    (source / "vocab.txt").unlink()
    with pytest.warns(UserWarning, match=r"no tokenizer; add BERT's vocab\.txt"):
        out = save_checkpoint(open_checkpoint(source), tmp_path / "out")
    settings = json.loads((out / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "VideoMAEImageProcessor"
    assert settings["crop_size"] == {"height": 32, "width": 32}


def test_values_too_large_for_float16_are_named(source: Path, tmp_path: Path) -> None:
    weights = load_file(source / "model.safetensors")
    weights["output.bias"][0] = 70000.0
    torch.save(weights, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"output\.bias: holds 7e\+04, too large for float16"):
        save_checkpoint(open_checkpoint(source), tmp_path / "out", "float16")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_unknown_dtype(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype: expected 'float32', 'float16', 'bfloat16', got 'int8'"):
        save_checkpoint(open_checkpoint(source), tmp_path / "out", "int8")


WRITTEN = ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt"]


def test_every_file_of_the_inputs_comes_along(source: Path, tmp_path: Path) -> None:
    (source / "preprocessor_config.json").rename(source / "processor_config.json")
    (source / "added_tokens.json").write_text("{}")
    out = save_checkpoint(open_checkpoint(source), tmp_path / "a" / "b" / "out")
    expected = ["added_tokens.json", "config.json", "model.safetensors", "processor_config.json", "vocab.txt"]
    assert sorted(os.listdir(out)) == expected
    assert os.listdir(out.parent) == ["out"]


def test_a_folder_that_is_there_keeps_its_files(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    save_checkpoint(open_checkpoint(source), out)
    assert sorted(os.listdir(out)) == ["README.md", *WRITTEN]

    (out / "model.safetensors").unlink()
    (out / "config.json").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"out: holds config\.json, preprocessor_config\.json, vocab\.txt already"
    ):
        save_checkpoint(open_checkpoint(source), out)
    assert (out / "config.json").read_text() == "mine"
    assert not (out / "model.safetensors").exists()


def test_impossible_folders(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for name, message in {
        str(source): "holds a model already",
        str(tmp_path / "file"): "expected a folder to write to, got a file",
        str(tmp_path / "file" / "out"): "cannot be written: ",
        "/proc/no/such": "cannot be written: ",
        str(tmp_path / ("x" * 300)): "File name too long",
        "nul\0": "embedded null",
    }.items():
        assert main(["convert", str(source), name]) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def unwritable() -> None:
    """A full disk, as far as the test can tell: no file may grow beyond 1,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))


def killed_while_writing() -> None:
    import safetensors

    def write(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    safetensors.serialize_file = write


def convert_after(prepare: Callable[[], None], source: Path, out: Path) -> Path:
    prepare()
    return save_checkpoint(open_checkpoint(source), out)


def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "git-tiny", ""]) == 1
    assert "folder: expected the name of one, got ''" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    error = outcome(convert_after, unwritable, source, out)
    assert isinstance(error, CheckpointError)
    assert f"{out}: cannot be written: " in str(error)
    assert os.listdir(tmp_path) == (["source", "out"] if exists else ["source"])
    assert not exists or not os.listdir(out)


@pytest.mark.parametrize("exists", [False, True])
def test_what_is_killed_leaves_nothing_that_looks_like_a_model(source: Path, tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with pytest.raises(AssertionError, match="exit code -9"):
        outcome(convert_after, killed_while_writing, source, out)
    with pytest.raises(CheckpointError, match=r"no such file or folder|no weights"):
        open_checkpoint(out)
    save_checkpoint(open_checkpoint(source), out)
    assert gitfast.load(out).config == gitfast.load(source).config
