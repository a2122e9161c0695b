"""What the commands share: arguments, the files that paths stand for, and the loop over them."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gitfast import Model, Result, load
from gitfast.engines.registry import DTYPES, ENGINES

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".gif", ".webp")

# Results of files, one list per file, each as soon as it is ready: captions have one result, answers one per question.
Run = Callable[[Sequence[str]], Iterable[list[Result]]]


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, help: str, example: str
) -> argparse.ArgumentParser:
    """A parser of one command, with an example under its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog="examples:\n" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_input_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"{kind} files, folders of them, or patterns")
    parser.add_argument("-r", "--recursive", action="store_true", help="go into the folders of a folder")


def add_model_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--model",
        default=default,
        help="folder, Hugging Face repository, or short name"
        + (f" (default: {default}, a small demonstration model)" if default else ""),
    )
    parser.add_argument("--engine", default="auto", choices=["auto", *ENGINES], help="what computes (default: auto)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", *DTYPES],
        help="of the weights in memory (default: float32; cuda: bfloat16)",
    )
    parser.add_argument(
        "--preprocess",
        default="hf",
        choices=["hf", "original"],
        help="resize and crop as transformers (hf), or as Microsoft's code (original)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of the cpu engine (default: all CPUs)")


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="end a text here (default: 50)")
    parser.add_argument("--beams", type=positive, default=1, metavar="N", help="beams (default: 1, greedy search)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per result")


def positive(text: str) -> int:
    """An argument that is an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def load_model(args: argparse.Namespace) -> Model:
    return load(args.model, engine=args.engine, dtype=args.dtype, num_threads=args.threads, preprocess=args.preprocess)


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"num_beams": args.beams}
    if args.max_new_tokens is not None:
        options["max_new_tokens"] = args.max_new_tokens
    return options


def find_files(paths: Sequence[str], suffixes: Sequence[str], *, recursive: bool) -> list[str]:
    """Files as they are given, those of folders by suffix, those of patterns; sorted within each.

    A path that does not exist stays: reading it says what is wrong.
    """
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            files += sorted(_files_in(path, suffixes, recursive))
        elif not os.path.exists(path) and glob.has_magic(path):
            files += sorted(glob.glob(path, recursive=recursive)) or [path]
        else:
            files.append(path)
    return files


def _files_in(folder: str, suffixes: Sequence[str], recursive: bool) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names if name.lower().endswith(tuple(suffixes)))
        if not recursive:
            folders.clear()


def run_files(files: Sequence[str], run: Run, *, as_json: bool, questions: Sequence[str] | None = None) -> int:
    """Runs the files and prints the results of each as they come. Returns the exit code."""
    if not files:
        print("gitfast: no files to read in the folders given", file=sys.stderr)
        return 1
    failed = 0
    labelled = len(files) > 1 or len(questions or ()) > 1
    with _Progress(len(files)) as progress:
        for done, (file, results) in enumerate(zip(files, run(files), strict=True), 1):
            if error := results[0].error:
                failed += 1
                progress.message(f"gitfast: {_named(str(error), file)}")
            lines = list(_lines(file, results, questions, as_json=as_json, labelled=labelled))
            progress.clear()
            print(*lines, sep="\n", end="\n" if lines else "", flush=True)
            progress.show(done)
    return 1 if failed else 0


def _named(message: str, file: str) -> str:
    return message if message.startswith(file) else f"{file}: {message}"


def _lines(
    file: str, results: Sequence[Result], questions: Sequence[str] | None, *, as_json: bool, labelled: bool
) -> Iterator[str]:
    asked: Sequence[str | None] = questions or [None]
    for result, question in zip(results, asked, strict=True):
        if as_json:
            yield json.dumps(_record(file, result, question))
        elif result.error is None:
            parts: Iterable[str] = (file, question, result.text) if question else (file, result.text)
            yield "\t".join(parts) if labelled else result.text


def _record(file: str, result: Result, question: str | None) -> dict[str, Any]:
    """``file_name`` and ``text`` are the names of Hugging Face's image folders."""
    record: dict[str, Any] = {"file_name": file}
    if question is not None:
        record["question"] = question
    if result.error is not None:
        return record | {"error": _named(str(result.error), file)}
    return record | {"text": result.text, "score": result.score, "finish_reason": result.finish_reason}


class _Progress:
    """A counter on stderr, when there is much to count and a terminal to show it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = total > 1 and sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        self.show(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, done: int) -> None:
        if self._shown:
            print(f"\r{done}/{self._total}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        self.clear()
        print(text, file=sys.stderr, flush=True)
