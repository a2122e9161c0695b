"""``gitfast convert``: any checkpoint to a Hugging Face folder."""

from __future__ import annotations

import argparse
from typing import Any

from gitfast.checkpoints import hub
from gitfast.checkpoints.convert import DTYPES, save_checkpoint
from gitfast.cli import common

_EXAMPLE = """\
  gitfast convert model.pt git-base-coco/                  Microsoft's file
  gitfast convert runs/lora-adapter merged/                an adapter, merged into its base model
  gitfast convert microsoft/git-large small/ --dtype float16"""


def add_parser(commands: Any) -> None:
    parser = common.add_command(
        commands, "convert", run, help="Write a checkpoint as a Hugging Face folder with safetensors.", example=_EXAMPLE
    )
    parser.add_argument("model", help="folder, weights file, Hugging Face repository, or short name")
    parser.add_argument("folder", help="where to write; must not hold a model yet")
    parser.add_argument("--base", help="the model to merge an adapter into (default: the one that the adapter names)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the tensors (default: float32)")


def run(args: argparse.Namespace) -> int:
    if not args.folder:  # as an unset variable of a shell gives it: not the current folder
        raise ValueError("folder: expected the name of one, got ''")
    print(save_checkpoint(hub.open_model(args.model, base=args.base), args.folder, args.dtype))
    return 0
