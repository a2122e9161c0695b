"""Arguments that commands share, and the model that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, get_args

from gitfast import Model, load
from gitfast.engines.registry import DTYPES, ENGINES
from gitfast.inputs.processor import Preprocess


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, help: str, example: str
) -> argparse.ArgumentParser:
    """Add the parser of one command, with an example under its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog="examples:\n" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=default,
        help="folder, Hugging Face repository, or short name"
        + (f" (default: {default}, a small demonstration model)" if default else ""),
    )
    group.add_argument("--engine", default="auto", choices=["auto", *ENGINES], help="what computes (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", *DTYPES],
        help="of the weights in memory (default: float32; cuda: bfloat16)",
    )
    group.add_argument(
        "--preprocess",
        default="hf",
        choices=get_args(Preprocess),
        help="resize and crop as transformers (hf), or as Microsoft's code (original)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help="threads of the cpu engine (default: all CPUs)")


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    return _integer(text, 1, "a positive integer")


def natural(text: str) -> int:
    """Parse an integer of at least 0."""
    return _integer(text, 0, "an integer of at least 0")


def _integer(text: str, minimum: int, expected: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) >= minimum):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return int(text)


def load_model(args: argparse.Namespace) -> Model:
    """Load the model that the arguments of ``add_model_arguments`` name."""
    return load(args.model, engine=args.engine, dtype=args.dtype, num_threads=args.threads, preprocess=args.preprocess)
