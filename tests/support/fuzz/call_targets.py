"""Calls whose arguments are JSON: options of generation, the search, and the native functions on arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gitfast import _C, ops
from gitfast.engines.search import native_options
from gitfast.errors import GitfastError
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.pipeline.options import TaskOptions, check_options, make_batching, make_options

from support.fuzz.loop import Target
from support.fuzz.mutations import changed_json
from support.tiny_checkpoint import VOCAB

_REFUSALS = (GitfastError, ValueError, TypeError)
_OPTIONS: list[dict[str, Any]] = [
    {"max_new_tokens": 5, "min_new_tokens": 2, "bad_words_ids": [[4, 5]], "no_repeat_ngram_size": 2},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.6, "length_penalty_form": "paper"},
    {"num_beams": 2, "early_stopping": "never", "max_new_tokens": 4, "ban_last_token": True},
    {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 3,
        "num_return_sequences": 2,
    },
    {"allowed_token_ids": [[5, 6], [7]], "repetition_penalty": 1.5, "suppress_tokens": [4], "max_new_tokens": 6},
    {"forced_bos_token_id": 5, "forced_eos_token_id": 3, "begin_suppress_tokens": [6], "max_new_tokens": 3},
]


def _call(function: Callable[[Any], object]) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        values = json.loads(data)
        if not isinstance(values, dict) or any(
            "\ud800" in key for key in values
        ):  # pybind11 ends the process for such a keyword's name
            raise ValueError("no arguments")
        return function(values)

    return read


def _target(function: Callable[[Any], object], seeds: list[dict[str, Any]]) -> Target:
    return Target(
        _call(function), [json.dumps(seed).encode() for seed in seeds], _REFUSALS, [changed_json], bytes_too=False
    )


def options(folder: Path) -> Target:
    """Keyword arguments of a task."""
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    tokenizer = Tokenizer.from_vocab(folder / "vocab.txt")

    def read(values: dict[str, Any]) -> object:
        check_options(values, TaskOptions)
        make_batching(values)
        chosen = make_options(values, tokenizer, room=30, defaults={"num_beams": 2})
        return _C.check_search(native_options(chosen, 3), [[2, 5]], len(VOCAB))

    more = [
        {"preset": "paper", "batch_size": 2, "workers": 1, "on_error": "return"},
        {"allowed_texts": ["a red", "no"]},
    ]
    return _target(read, [*_OPTIONS, *more, {"num_frames": 3, "sampling": "uniform", "sampling_seed": 1}])


def search(_: Path) -> Target:
    """A search over logits that the options see."""
    logits = np.random.default_rng(0).standard_normal((64, len(VOCAB)), np.float32)
    logits[::5, ::3] = -np.inf

    def read(values: dict[str, Any]) -> object:
        options = {name: value for name, value in values.items() if name not in ("prompts", "vocab_size", "steps")}
        made = _C.Search(options, values.get("prompts", [[2]]), values.get("vocab_size", len(VOCAB)))
        steps = values.get("steps", 8)
        for step in range(min(steps, 8) if isinstance(steps, int) else 8):
            rows = made.num_rows
            if made.done or rows > len(logits):
                break
            made.advance(np.roll(logits, step, 0)[:rows])
        _C.sample_keys(options, values.get("prompts", [[2]]))
        return made.results(), _C.length_norms(options, 9), made.tokens, made.parents, made.items

    extra = {"eos_token_id": 3, "prompts": [[2, 5], [2]], "vocab_size": len(VOCAB), "steps": 8}
    return _target(read, [seed | extra for seed in _OPTIONS] + [{**extra, "eos_token_id": [3, 4]}])


_POOL = np.random.default_rng(0).standard_normal(1 << 16, np.float32)
_DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int32", "int64", ">f4")
_MOST = 1 << 12  # elements of one array


def _array(given: Any) -> Any:
    """An array as its description says, as far as there is memory: {"shape", "strides" in elements, "dtype"}."""
    if not isinstance(given, dict):
        return given
    shape, strides = given.get("shape"), given.get("strides")
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape) or len(shape) > 20:
        return given
    dtype = given.get("dtype") if given.get("dtype") in _DTYPES else "float32"
    shape = [abs(size) % 97 for size in shape]
    while np.prod(shape, dtype=np.int64) > _MOST:
        shape[int(np.argmax(shape))] //= 2
    if not isinstance(strides, list) or len(strides) != len(shape) or not all(isinstance(s, int) for s in strides):
        return np.resize(_POOL, shape).astype(dtype)
    strides = [step % 200 - (200 if step < 0 and step % 200 else 0) for step in strides]
    middle = len(_POOL) // 2  # 97 * 200 in each of a few dimensions stays within, or it is cut below
    while sum(size * abs(step) for size, step in zip(shape, strides, strict=True)) >= middle:
        strides[int(np.argmax(np.abs(strides)))] //= 2
    return as_strided(_POOL[middle:], shape, [4 * step for step in strides]).astype(dtype, copy=dtype != "float32")


def _described(*shape: int, **more: Any) -> dict[str, Any]:
    return {"shape": list(shape), **more}


def kernels(_: Path) -> Target:
    """The functions on arrays, with arrays of any shape, strides and dtype."""
    functions: dict[str, Callable[..., object]] = {
        "linear": ops.linear,
        "layer_norm": ops.layer_norm,
        "prefix_attention": ops.prefix_attention,
        "PackedWeight": ops.PackedWeight,
        "PackedPrefix": ops.PackedPrefix,
    }
    pool = ops.ThreadPool(2)

    def read(values: dict[str, Any]) -> object:
        name = values.pop("call", "linear")
        arguments = {key: _array(value) for key, value in values.items()}
        if "pool" in arguments:
            arguments["pool"] = pool if arguments["pool"] else None
        weight = arguments.get("weight")
        if isinstance(weight, np.ndarray) and isinstance(values.get("packed"), str):
            arguments["weight"] = ops.PackedWeight(weight, arguments.pop("bias", None), arguments["packed"])
        arguments.pop("packed", None)
        if not isinstance(name, str) or name not in functions:
            raise ValueError(name)
        return functions[name](**arguments)

    isa = ops.available_isas()[0]
    linear = {"call": "linear", "x": _described(3, 8), "weight": _described(5, 8), "bias": _described(5), "isa": isa}
    text = {"k_text": _described(3, 2, 8), "v_text": _described(3, 2, 8), "slots": [[0, 2], [], [1], [2, 2]]}
    seeds = [
        {**linear, "residual": _described(3, 5), "activation": "gelu", "out": _described(3, 5)},
        {**linear, "x": _described(3, 8, strides=[20, 1]), "packed": "int8", "pool": True, "tiles": True},
        {**linear, "packed": "w8a8", "isa": ""},
        {**linear, "packed": "bfloat16", "weight": _described(40, 8, dtype="float16"), "bias": None},
        {"call": "layer_norm", "x": _described(4, 9), "gamma": _described(9), "beta": _described(9), "eps": 1e-5},
        {
            "call": "prefix_attention",
            "q": _described(4, 2, 8),
            "k": _described(2, 5, 8),
            "v": _described(2, 5, 8),
            **text,
        },
        {"call": "PackedWeight", "weight": _described(40, 9), "bias": _described(40), "dtype": "int8"},
        {"call": "PackedPrefix", "k": _described(2, 5, 8), "v": _described(2, 5, 8), "dtype": "bfloat16"},
    ]
    return _target(read, seeds)


def engine(_: Path) -> Target:
    """The calls of a small engine."""
    from support.tiny_model import make_engine, make_model

    native = make_engine(make_model())._native
    prefixes = [*native.encode(_POOL[: 2 * 3 * 32 * 32].reshape(2, 3, 32, 32)), None]

    def chosen(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [prefixes[item % 3] if isinstance(item, int) else item for item in value]

    def read(values: dict[str, Any]) -> object:
        name = values.pop("call", None)
        if name not in ("encode", "features", "generate", "score", "logits", "attend", "add"):
            raise ValueError(name)
        arguments = {key: _array(value) for key, value in values.items()}
        if "prefixes" in arguments:
            arguments["prefixes"] = chosen(arguments["prefixes"])
        if "prefix" in arguments:
            arguments["prefix"] = chosen([arguments["prefix"]])[0]
        if name != "add":
            return getattr(native, name)(**arguments)
        decoding = native.decoding()
        decoding.add(**arguments)
        steps = 0
        while len(decoding) and steps < 50:
            decoding.step()
            steps += 1
        return steps

    few = {"max_new_tokens": 3, "eos_token_id": 3}
    pixels = {"pixel_values": {"shape": [1, 3, 32, 32]}, "interpolate_positions": True}
    seeds = [
        {"call": "encode", **pixels},
        {"call": "features", **pixels},
        {"call": "generate", "prefixes": [0, 2], "prompts": [[2, 5], [2]], "options": few},
        {"call": "score", "prefixes": [0, 1], "sequences": [[2, 5, 6], [2, 3]]},
        {"call": "logits", "prefixes": [0, 1], "sequences": [[2, 5, 6], [2, 3]]},
        {"call": "attend", "prefix": 0, "sequence": [2, 5, 6]},
        {"call": "add", "prefix": 0, "prompt": [2, 5], "options": {**few, "num_beams": 2}},
    ]
    return _target(read, seeds)


TARGETS = {"options": options, "search": search, "ops": kernels, "engine": engine}
