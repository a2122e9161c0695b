"""Checkpoint folders: every format gives the same tensors, and what is wrong is listed in one error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gitfast.checkpoints.checkpoint import expected_tensors, num_parameters, open_checkpoint
from gitfast.checkpoints.config import GitConfig
from gitfast.errors import CheckpointError, ConfigError, GitfastError

from support.processes import run_python
from support.tiny_checkpoint import write_checkpoint

WORDS = "git.embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint with model.safetensors."""
    return write_checkpoint(tmp_path / "model")


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Replace tensors of model.safetensors, or leave them out."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor is None:
            del weights[name]
        else:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors")


def take_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights as torch tensors; the file is removed."""
    weights = {name: torch.from_numpy(x.copy()) for name, x in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    return weights


def assert_holds(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    opened = open_checkpoint(folder).weights
    assert opened.keys() == weights.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(opened[name], tensor.numpy())


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        ({}, 176_619_066),
        ({"vision_config": {"image_size": 480}}, 177_159_738),
        ({"num_image_with_embedding": 6}, 176_623_674),
        (
            {
                "vision_config": {
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "patch_size": 14,
                }
            },
            394_196_026,
        ),
    ],
)
def test_parameters_of_the_published_models(overrides: dict[str, object], count: int) -> None:
    assert num_parameters(GitConfig.from_dict(overrides)) == count


def test_names_and_shapes_are_those_of_transformers(folder: Path) -> None:
    from transformers import GitConfig as TheirConfig
    from transformers import GitForCausalLM

    config = json.loads((folder / "config.json").read_text())
    state = GitForCausalLM(TheirConfig(**config)).state_dict()
    theirs = {name: tuple(x.shape) for name, x in state.items() if not name.endswith("position_ids")}
    assert expected_tensors(GitConfig.from_dict(config)) == theirs


def test_pytorch_model_bin(folder: Path) -> None:
    weights = take_weights(folder)
    buffers = {"git.embeddings.position_ids": torch.arange(40)[None]}  # old files hold them
    torch.save({**weights, **buffers}, folder / "pytorch_model.bin")
    assert_holds(folder, weights)


@pytest.mark.parametrize(("form", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards(folder: Path, form: str, suffix: str) -> None:
    weights = take_weights(folder)
    names = list(weights)
    halves = {f"{form}-00001-of-00002.{suffix}": names[:20], f"{form}-00002-of-00002.{suffix}": names[20:]}
    for file, held in halves.items():
        part = {name: weights[name] for name in held}
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            save_file({name: x.numpy() for name, x in part.items()}, folder / file)
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (folder / f"{form}.{suffix}.index.json").write_text(json.dumps(index))
    assert_holds(folder, weights)

    index["weight_map"][WORDS] = "../elsewhere." + suffix
    (folder / f"{form}.{suffix}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'\.\./elsewhere\..*' is not the name of a"):
        open_checkpoint(folder)

    index["weight_map"][WORDS] = list(halves)[1]
    (folder / f"{form}.{suffix}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"lacks tensors the index places there: {WORDS}"):
        open_checkpoint(folder)


def test_both_spellings_of_the_temporal_embeddings(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "video", num_image_with_embedding=2)
    weights = load_file(folder / "model.safetensors")
    assert "git.img_temporal_embedding.1" in weights
    published = {name.replace("temporal", "temperal"): x for name, x in weights.items()}
    save_file(published, folder / "model.safetensors")
    opened = open_checkpoint(folder).weights["git.img_temporal_embedding.1"]
    np.testing.assert_array_equal(opened, weights["git.img_temporal_embedding.1"])


def test_both_spellings_in_one_file_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "video", num_image_with_embedding=2)
    name = "git.img_temporal_embedding.1"
    tensor = load_file(folder / "model.safetensors")[name]
    change(folder, **{name.replace("temporal", "temperal"): tensor + 1})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: holds {name} twice, in both spellings"):
        open_checkpoint(folder)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.model.", "model.net."]
)
def test_prefixes_of_wrappers(folder: Path, prefix: str, form: str) -> None:
    weights = take_weights(folder)
    wrapped = {prefix + name: x for name, x in weights.items()}
    if form == "bin":
        torch.save({"model_state_dict": wrapped}, folder / "pytorch_model.bin")
    else:
        save_file({name: x.numpy() for name, x in wrapped.items()}, folder / "model.safetensors")
    assert_holds(folder, weights)


def test_wrappers_inside_a_model(folder: Path) -> None:
    weights = take_weights(folder)
    compiled = {name.replace("git.encoder.", "git.encoder._orig_mod."): x for name, x in weights.items()}
    assert compiled.keys() != weights.keys()
    torch.save(compiled, folder / "pytorch_model.bin")
    assert_holds(folder, weights)
    torch.save({**weights, **compiled}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .*holds git\.encoder.* twice"):
        open_checkpoint(folder)


def test_a_prefix_of_some_names_is_not_stripped(folder: Path) -> None:
    change(folder, **{"output.bias": None, "module.output.bias": np.zeros(31, np.float32)})
    with pytest.raises(CheckpointError, match=r"missing output\.bias\n  unexpected module\.output\.bias"):
        open_checkpoint(folder)


def test_an_error_lists_so_many_differences_at_most(folder: Path) -> None:
    change(folder, **{f"extra.{i:04}": np.zeros(1, np.float32) for i in range(4_000)})
    with pytest.raises(CheckpointError, match=r"unexpected extra\.0049\n  and 3950 more$"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(GitfastError, match=rf"{name}: expected a regular file, got a pipe"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_git_lfs_pointer_is_told(folder: Path, name: str) -> None:
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 709\n")
    with pytest.raises(GitfastError, match=rf"{name}: a Git LFS pointer.*git lfs pull"):
        open_checkpoint(folder)


def test_tied_output_falls_back_to_the_words(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    change(folder, **{"output.weight": None})
    weights = open_checkpoint(folder).weights
    np.testing.assert_array_equal(weights["output.weight"], weights[WORDS])


def test_every_difference_is_listed(folder: Path) -> None:
    odd = np.zeros((3, 3), np.float32)
    change(folder, **{"output.bias": None, WORDS: odd, "extra": odd, "output.weight": None, "git.other": odd})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'model.safetensors'}: holds ")
    assert "they differ in 5:" in message
    for part in ("missing output.bias", "missing output.weight", "unexpected extra", "unexpected git.other"):
        assert part in message
    assert f"{WORDS}: expected shape (31, 32), got (3, 3)" in message


def test_integers_are_no_weights(folder: Path) -> None:
    change(folder, **{"output.bias": np.zeros(31, np.int32)})
    with pytest.raises(CheckpointError, match=r"output\.bias: expected a floating-point dtype, got int32"):
        open_checkpoint(folder)


def test_what_a_folder_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(folder / "config.bak")
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights; expected one of model\.safetensors, .*, model\.pt"):
        open_checkpoint(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter, not a model"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_reading_imports_neither_torch_nor_safetensors(folder: Path, form: str) -> None:
    if form == "bin":
        torch.save(take_weights(folder), folder / "pytorch_model.bin")
    program = (
        "import sys; from gitfast.checkpoints.checkpoint import open_checkpoint;"
        "w = open_checkpoint(sys.argv[1]).weights;"
        "[w[name].sum() for name in w]; found = {'torch', 'safetensors', 'pickle'} & sys.modules.keys() - {'pickle'};"
        "sys.exit(f'imports {found}' if found else 0)"
    )
    run_python(program, folder, check=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "the file is empty"),
        ("pytorch_model.bin", b"", "the file is empty"),
        ("config.json", b"", "not valid JSON: the file is empty"),
        ("config.json", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON that is nested too deeply"),
    ],
    ids=["safetensors", "torch", "config", "deep"],
)
def test_empty_and_deep_files_are_told(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(GitfastError, match=f"{name}: {message}$"):
        open_checkpoint(folder)
