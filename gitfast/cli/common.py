"""The arguments that commands share, and the model that they name."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from gitfast import Model, load
from gitfast.engines.registry import DTYPES, ENGINES
from gitfast.inputs.limits import Limits
from gitfast.inputs.processor import Preprocess

_FACTORS = {"K": 10**3, "M": 10**6, "G": 10**9}
_LIMITS: dict[str, Any] = dataclasses.asdict(Limits())  # int or float


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


def add_model_arguments(
    parser: argparse.ArgumentParser, default: str | None, limits: Mapping[str, Any] | None = None
) -> None:
    """Add the arguments of a model; ``limits`` are those whose defaults are not those of ``gitfast.Limits``."""
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
        help="resize and crop as transformers (hf); as Microsoft's code (original); as hf, with large JPEGs decoded at "
        "a fraction of their size, which is not exact (fast)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help="threads of the cpu engine (default: all CPUs)")
    group.add_argument(
        "--lanes",
        type=positive,
        metavar="N",
        help="crews of --threads each that share the work of the cpu engine; without --threads all CPUs are divided "
        "among them (default: 1, from 32 CPUs on one for each 16)",
    )
    group.add_argument(
        "--limit",
        action="append",
        default=[],
        type=limit,
        metavar="NAME=N",
        help="what one input may cost, as max_pixels=200M; may be repeated. Names are the fields of gitfast.Limits: "
        + ", ".join(f"{name} ({_short(value)})" for name, value in (_LIMITS | dict(limits or {})).items()),
    )


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


def limit(text: str) -> tuple[str, int | float]:
    """Parse NAME=N, where N may end in K, M or G: thousands, millions or billions."""
    name, _, number = text.partition("=")
    name = name.replace("-", "_")
    if name not in _LIMITS:
        near = difflib.get_close_matches(name, _LIMITS, n=1)
        raise argparse.ArgumentTypeError(f"no limit {name!r}; {f'did you mean {near[0]}?' if near else 'see --help'}")
    factor = _FACTORS.get(number[-1:].upper(), 1)
    try:
        value: Any = float(number.rstrip("kKmMgG") if factor > 1 else number) * factor
        if isinstance(_LIMITS[name], int):
            value = int(value)
        Limits(**{name: value})
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{name}: expected a positive number such as 200M, got {number!r}") from None
    return name, value


def _short(value: int | float) -> str:
    for letter, factor in reversed(_FACTORS.items()):
        if value >= factor and value % factor == 0:
            return f"{value // factor:g}{letter}"
    return f"{value:g}" if value < 10**6 else f"{value / 10**6:.0f}M"


def load_model(args: argparse.Namespace) -> Model:
    """Load the model that the arguments of ``add_model_arguments`` name."""
    return load(
        args.model,
        engine=args.engine,
        dtype=args.dtype,
        num_threads=args.threads,
        num_lanes=args.lanes,
        preprocess=args.preprocess,
        limits=Limits(**dict(args.limit)),
    )
