"""Files of checkpoints, tokenizers and adapters, each in a folder of its own."""

from __future__ import annotations

import encodings.cp437  # noqa: F401  # zipfile decodes old names with it
import io
import json
import math
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.numpy import load_file, save

from gitfast.checkpoints import checkpoint
from gitfast.checkpoints.adapter import apply_adapter
from gitfast.checkpoints.checkpoint import expected_tensors, open_checkpoint, read_tensors
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.convert import save_checkpoint
from gitfast.checkpoints.pickle_reader import read_pickle
from gitfast.checkpoints.safetensors_reader import read_safetensors
from gitfast.errors import GitfastError
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.tokenizer import Tokenizer

from support.fuzz.loop import Mutation, Target
from support.fuzz.mutations import changed_header, changed_json, changed_opcodes
from support.fuzz.writing import read_file
from support.tiny_checkpoint import VOCAB, write_checkpoint


def _load(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        tensor.load()


def safetensors(folder: Path) -> Target:
    tensors = {"a": np.zeros((3, 4), np.float32), "b": np.ones(5, np.float16), "c": np.ones((), np.int64)}
    read = read_file(folder / "x.safetensors", lambda path: _load(read_safetensors(path)))
    return Target(read, [save(tensors, {"format": "pt"}), save(tensors)], GitfastError, [changed_header], folder)


def _saved(**options: Any) -> bytes:
    buffer = io.BytesIO()
    state = {"a": torch.zeros(3, 4), "b": torch.ones(5).half(), "c": torch.nn.Parameter(torch.ones(2))}
    torch.save({"model": state, "epoch": 3}, buffer, **options)
    return buffer.getvalue()


def _in_archive(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, size in (("0", 48), ("1", 10), ("2", 8)):
            archive.writestr(f"archive/data/{key}", bytes(size))
    return buffer.getvalue()


def torch_zip(folder: Path) -> Target:
    read = read_file(folder / "x.bin", lambda path: _load(read_pickle(path)))
    return Target(read, [_saved()], GitfastError, folder=folder)


def torch_pickle(folder: Path) -> Target:
    """The pickle within a sound archive."""
    seeds = [zipfile.ZipFile(io.BytesIO(_saved(pickle_protocol=p))).read("archive/data.pkl") for p in (2, 4)]
    read = read_file(folder / "x.bin", lambda path: _load(read_pickle(path)), _in_archive)
    return Target(read, seeds, GitfastError, [changed_opcodes], folder)


def torch_older(folder: Path) -> Target:
    """The format before the archives."""
    seeds = [_saved(pickle_protocol=p, _use_new_zipfile_serialization=False) for p in (2, 4)]
    read = read_file(folder / "x.bin", lambda path: _load(read_pickle(path)))
    return Target(read, seeds, GitfastError, [changed_opcodes], folder)


def config(folder: Path) -> Target:
    path = write_checkpoint(folder / "model") / "config.json"
    return _json_target(path, [path.read_bytes()], _beside_weights(path.parent))


# Words of Microsoft's names, in place of those of Hugging Face.
_MICROSOFT = {
    "git.image_encoder.vision_model.embeddings.class_embedding": "image_encoder.class_embedding",
    "git.image_encoder.vision_model.embeddings.position_embedding.weight": "image_encoder.positional_embedding",
    "git.image_encoder.vision_model.embeddings.patch_embedding.": "image_encoder.conv1.",
    "git.image_encoder.vision_model.pre_layrnorm": "image_encoder.ln_pre",
    "git.image_encoder.vision_model.post_layernorm": "image_encoder.ln_post",
    "git.image_encoder.vision_model.encoder.layers.": "image_encoder.transformer.resblocks.",
    ".self_attn.q_proj.": ".attn.in_proj_",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    "git.embeddings.word_embeddings.": "textual.embedding.words.",
    "git.embeddings.position_embeddings.": "textual.embedding.positions.",
    "git.embeddings.LayerNorm.": "textual.embedding.layer_norm.",
    "git.visual_projection.": "textual.",
    "git.encoder.": "textual.transformer.encoder.",
    "git.img_temporal_embedding.": "img_temperal_embedding.",
    "output.": "textual.output.",
}


def microsoft(folder: Path) -> Target:
    """Names and shapes as Microsoft's files have them, without a configuration: the header of a file of zeros."""
    layers = {"hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**layers, "image_size": 32, "patch_size": 8}
    config = GitConfig.from_dict({**layers, "vocab_size": 120, "vision_config": vision, "num_image_with_embedding": 2})
    header: dict[str, Any] = {}
    end = 0
    for name, shape in expected_tensors(config).items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        for ours, theirs in _MICROSOFT.items():
            if ours != "output." or name.startswith(ours):
                name = name.replace(ours, theirs)
        shape = (3 * shape[0], *shape[1:]) if "in_proj_" in name else shape
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    body = bytes(end)
    path = folder / "model.safetensors"
    read = read_file(path, open_checkpoint, lambda data: len(data).to_bytes(8, "little") + data + body)
    return Target(read, [json.dumps(header).encode()], GitfastError, [changed_json], folder, bytes_too=False)


def generation_config(folder: Path) -> Target:
    path = write_checkpoint(folder / "model") / "generation_config.json"
    values = {"eos_token_id": [3, 5], "num_beams": 2, "bad_words_ids": [[4]], "temperature": 0.5, "min_length": 2}
    values |= {"max_new_tokens": 7, "suppress_tokens": [4], "forced_eos_token_id": 3, "pad_token_id": 0}
    return _json_target(path, [json.dumps(values).encode()], _beside_weights(path.parent))


def _beside_weights(folder: Path) -> Callable[[Path], object]:
    """Open a checkpoint whose weights stay the same: their names are read once."""
    tensors = read_tensors(folder / "model.safetensors")

    def held(_: Path) -> dict[str, Any]:
        return dict(tensors)

    def read(path: Path) -> object:
        with mock.patch.object(checkpoint, "read_tensors", held):
            return open_checkpoint(path.parent)

    return read


def preprocessor_config(folder: Path) -> Target:
    path = write_checkpoint(folder / "model") / "preprocessor_config.json"
    half = [0.5, 0.5, 0.5]
    clip = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_mean": half, "resample": 3}
    clip |= {"image_std": half, "rescale_factor": 1 / 255, "do_resize": True, "do_center_crop": True}
    video = {"image_processor_type": "VideoMAEImageProcessor", "size": {"height": 32, "width": 32}, "crop_size": 32}
    seeds = [path.read_bytes(), json.dumps(clip).encode(), json.dumps(video).encode()]
    pixels = np.zeros((9, 11, 3), np.uint8)

    def read(path: Path) -> object:
        processor = ImageProcessor.from_file(path)
        edges = [processor.size, processor.crop_size]
        large = any(edge is not None and np.max(edge) > 64 for edge in edges)
        return None if large else processor([pixels])  # larger ones are bounded, and take their time

    return _json_target(path, seeds, read)


def _json_target(path: Path, seeds: list[bytes], read: Callable[[Path], object]) -> Target:
    warnings.simplefilter("ignore")
    return Target(read_file(path, read), seeds, GitfastError, [changed_json, changed_json, changed_json], path.parent)


def _tokenizer(folder: Path, name: str, seed: bytes, *, text: bool = False) -> Target:
    warnings.simplefilter("ignore")
    (folder / "vocab.txt").write_text("\n".join(VOCAB))

    def read(path: Path) -> object:
        tokenizer = Tokenizer.from_folder(path.parent)
        return tokenizer.decode(tokenizer.prompt("A red, <x> square? [SEP] " + "x" * 300))

    mutations: list[Mutation] = [] if text else [changed_json] * 3
    return Target(read_file(folder / name, read), [seed], GitfastError, mutations, folder)


def tokenizer_json(folder: Path) -> Target:
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    BertTokenizer(str(folder / "vocab.txt")).backend_tokenizer.save(str(folder / "tokenizer.json"))
    return _tokenizer(folder, "tokenizer.json", (folder / "tokenizer.json").read_bytes())


def tokenizer_config(folder: Path) -> Target:
    token = {"content": "<x>", "special": True, "lstrip": True}
    config = {"do_lower_case": False, "cls_token": "[CLS]", "added_tokens_decoder": {str(len(VOCAB)): token}}
    config |= {"strip_accents": None, "tokenize_chinese_chars": True, "unk_token": {"content": "[UNK]"}}
    return _tokenizer(folder, "tokenizer_config.json", json.dumps(config).encode())


def special_tokens_map(folder: Path) -> Target:
    values = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "additional_special_tokens": ["<x>"]}
    return _tokenizer(folder, "special_tokens_map.json", json.dumps(values).encode())


def added_tokens(folder: Path) -> Target:
    return _tokenizer(folder, "added_tokens.json", json.dumps({"<x>": len(VOCAB), "y": len(VOCAB) + 1}).encode())


def vocab(folder: Path) -> Target:
    return _tokenizer(folder, "vocab.txt", "\n".join(VOCAB).encode(), text=True)


_LAYER = "git.encoder.layer.0.attention.self.query"


def _adapter(folder: Path, name: str, mutation: Mutation) -> Target:
    base = open_checkpoint(write_checkpoint(folder / "base"))
    outputs, inputs = load_file(folder / "base" / "model.safetensors")[f"{_LAYER}.weight"].shape
    (folder / "adapter").mkdir()
    matrices = {"lora_A": np.ones((2, inputs), np.float32), "lora_B": np.ones((outputs, 2), np.float32)}
    weights = save({f"base_model.model.{_LAYER}.{part}.weight": x for part, x in matrices.items()})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {r".*\.(query|key)": 3, "[a-z]+": 5}}
    config |= {"rank_pattern": {"key": 3}, "target_modules": ["query"], "bias": "none", "fan_in_fan_out": False}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": weights}
    for file, data in files.items():
        (folder / "adapter" / file).write_bytes(data)
    read = read_file(
        folder / "adapter" / name, lambda path: apply_adapter(path.parent, base).weights[f"{_LAYER}.weight"]
    )
    return Target(read, [files[name]], GitfastError, [mutation] * 3, folder)


def adapter_config(folder: Path) -> Target:
    return _adapter(folder, "adapter_config.json", changed_json)


def adapter_weights(folder: Path) -> Target:
    return _adapter(folder, "adapter_model.safetensors", changed_header)


def convert(folder: Path) -> Target:
    """A whole folder: the configuration or the weights' header changed; a refusal leaves nothing behind."""
    warnings.simplefilter("ignore")
    source = write_checkpoint(folder / "source")
    config, weights = (source / "config.json").read_bytes(), (source / "model.safetensors").read_bytes()
    target = folder / "target"

    def mutate(data: bytes, rng: Any) -> bytes:
        head, _, header = data.partition(b"\n")
        return (
            changed_json(head, rng) + b"\n" + header if rng.randrange(2) else head + b"\n" + changed_json(header, rng)
        )

    def read(data: bytes) -> object:
        head, _, header = data.partition(b"\n")
        length = int.from_bytes(weights[:8], "little")
        (source / "config.json").write_bytes(head)
        (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights[8 + length :])
        try:
            return save_checkpoint(open_checkpoint(source), target, "float16")
        except GitfastError:
            assert not list(folder.glob(".target*")), "a refused conversion left files"
            assert not target.exists(), "a refused conversion left files"
            raise
        finally:
            shutil.rmtree(target, ignore_errors=True)

    length = int.from_bytes(weights[:8], "little")
    return Target(read, [config + b"\n" + weights[8 : 8 + length]], GitfastError, [mutate] * 3, folder)


TARGETS = {
    "safetensors": safetensors,
    "torch-zip": torch_zip,
    "torch-pickle": torch_pickle,
    "torch-older": torch_older,
    "config": config,
    "microsoft": microsoft,
    "generation-config": generation_config,
    "preprocessor-config": preprocessor_config,
    "tokenizer-json": tokenizer_json,
    "tokenizer-config": tokenizer_config,
    "special-tokens-map": special_tokens_map,
    "added-tokens": added_tokens,
    "vocab": vocab,
    "adapter-config": adapter_config,
    "adapter-weights": adapter_weights,
    "convert": convert,
}
