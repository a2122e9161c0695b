"""``gitfast info``: the engines that can run here, the reasons that others cannot, and facts about a model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from typing import Any

import numpy as np

from gitfast import Model, __version__, load
from gitfast.checkpoints import hub
from gitfast.checkpoints.checkpoint import num_parameters
from gitfast.cli import common
from gitfast.engines.registry import DTYPES, ENGINES, engine_statuses

_EXAMPLE = """\
  gitfast info
  gitfast info --model microsoft/git-base-coco --json
  gitfast info --model microsoft/git-base-coco --engine cuda --dtype int8"""


def add_parser(commands: Any) -> None:
    parser = common.add_command(
        commands, "info", run, help="Say which engines can run here, and what a model is.", example=_EXAMPLE
    )
    parser.add_argument("--model", help="folder, Hugging Face repository, or short name")
    parser.add_argument("--engine", choices=["auto", *ENGINES], help="load the model on it, and say what it holds")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES], help="of the weights in memory")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    facts: dict[str, Any] = {
        "gitfast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "engines": [dataclasses.asdict(status) for status in engine_statuses()],
    }
    if args.model is not None:
        facts["model"] = _model_facts(args.model)
    if args.engine is not None:
        if args.model is None:
            raise ValueError("--engine: needs a --model to load")
        facts["loaded"] = loaded_facts(load(args.model, engine=args.engine, dtype=args.dtype))
    print(json.dumps(facts) if args.json else _text(facts))
    return 0


def _model_facts(name: str) -> dict[str, Any]:
    checkpoint = hub.open_model(name)
    config = checkpoint.config
    return {
        "name": name,
        "folder": str(checkpoint.folder),
        "parameters": num_parameters(config),
        "image_size": config.vision_config.image_size,
        "patch_size": config.vision_config.patch_size,
        "frames": config.num_image_with_embedding,
        "image_tokens": config.num_image_tokens,
        "vision_layers": config.vision_config.num_hidden_layers,
        "vision_width": config.vision_config.hidden_size,
        "text_layers": config.num_hidden_layers,
        "text_width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "text_positions": config.max_position_embeddings,
    }


def loaded_facts(model: Model) -> dict[str, Any]:
    """Return what a model's engine holds after encoding an image or clip; None where it does not count."""
    engine, config = model.engine, model.config
    edge = config.vision_config.image_size
    frames = [] if config.num_image_with_embedding is None else [config.num_image_with_embedding]
    blank = np.zeros((1, *frames, 3, edge, edge), np.float32)
    for _ in range(2):  # a plan for repeated images is captured the second time
        (prefix,) = engine.encode(blank)
    plans = engine.plans()
    return {
        "engine": engine.name,
        "dtype": engine.dtype,
        "weight_bytes": engine.nbytes,
        "prefix_bytes": prefix.nbytes,
        "plans": [{"for": plan.label, "captured": plan.captured, "bytes": plan.nbytes} for plan in plans],
    }


def _text(facts: dict[str, Any]) -> str:
    lines = [f"gitfast {facts['gitfast']}, Python {facts['python']}, {facts['platform']}", "", "engines"]
    for engine in facts["engines"]:
        usable = "usable" if engine["usable"] else "not usable"
        lines.append(f"  {engine['name']:<10} {usable}: {engine['detail']}")
    if model := facts.get("model"):
        lines += ["", "model"]
        lines += [f"  {key.replace('_', ' '):<15} {_shown(value)}" for key, value in model.items()]
    if loaded := facts.get("loaded"):
        *counts, (_, plans) = loaded.items()
        lines += ["", "loaded"]
        lines += [f"  {key.replace('_', ' '):<15} {_shown(value)}" for key, value in counts if value is not None]
        for plan in plans:
            how = "a graph" if plan["captured"] else "kernel by kernel"
            lines.append(f"  {'kept':<15} for {plan['for']}: {how}, {plan['bytes']:,} bytes")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "none: single images"
    return f"{value:,}" if isinstance(value, int) else str(value)
