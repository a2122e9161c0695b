"""The inputs and outputs of the commands that write texts, and the run between them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import IO, Any

from gitfast import Model, Result
from gitfast.cli import common
from gitfast.cli.console import Console
from gitfast.errors import ArgumentError, GitfastError
from gitfast.pipeline.folders.names import escape, printable
from gitfast.pipeline.folders.outputs import LineFile, Output, OutputError, SidecarFiles, StreamOutput
from gitfast.pipeline.folders.parquet import ParquetFile
from gitfast.pipeline.folders.records import READ_WORDS, JsonRecords, TextEdit, TextRecords
from gitfast.pipeline.folders.run import Counts, Run, Stop
from gitfast.pipeline.folders.shards import SHARD_SUFFIXES
from gitfast.pipeline.folders.walk import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Item, Walk, WalkReport
from gitfast.platforms import usable_cpus

_MAX_NAMED = 8  # extensions of skipped files
_MAX_WORKERS = 4
_INPUT_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *SHARD_SUFFIXES)

Compute = Callable[..., Generator[Sequence[Result], None, None]]


class UsageError(GitfastError):
    """An error of arguments that do not go together."""


def add_input_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    add = parser.add_argument_group("inputs").add_argument
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help=f"{kind} files, folders, patterns, tar shards, parquet files"
    )
    add("-r", "--recursive", action="store_true", help="go into the folders of a folder")
    add("--follow-links", action="store_true", help="go into links to folders, too")
    add("--files-from", metavar="FILE", help="read paths from a file, one a line or NUL-separated; - is standard input")
    add("-0", "--null", action="store_true", help="paths in --files-from are separated by NUL bytes")
    add("--shard", type=_shard, metavar="I/N", help="only this part of N, 1 to N: the same inputs on every machine")
    add("--image-column", metavar="NAME", help="of parquet files (default: the one that holds images)")
    add("--batch-size", type=common.positive, metavar="N", help="inputs encoded together (default: 8)")
    add("--workers", type=common.positive, metavar="N", help="threads that read ahead (default: the CPUs, 4 at most)")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("outputs").add_argument
    add(
        "--output",
        choices=["text", "jsonl", "txt", "parquet"],
        help="lines of name and text; lines of JSON with names relative to the folder; a file beside each input; a "
        "parquet file (default: by the ending of --out, else text)",
    )
    add("--json", action="store_true", help="lines of JSON with whole paths")
    add("--out", metavar="FILE", help="write there, and go on where an earlier run ended; of txt a folder")
    add(
        "--existing",
        choices=["skip", "overwrite", "append", "prepend"],
        default="skip",
        help="what becomes of results that are there (default: skip)",
    )
    add("--caption-extension", default=".txt", metavar="EXT", help="of the files of txt (default: .txt)")
    add(
        "--separator",
        "--caption-separator",
        default=", ",
        metavar="TEXT",
        help="between texts that --existing joins (default: ', ')",
    )
    add("--prefix", "--caption-prefix", default="", metavar="TEXT", help="put before each text")
    add("--suffix", "--postfix", "--caption-suffix", default="", metavar="TEXT", help="put behind each text")
    add(
        "--remove-words",
        action="append",
        default=[],
        type=_pattern,
        metavar="REGEX",
        help="remove what matches from each text; may be repeated",
    )
    add(
        "--remove-read-words",
        dest="remove_words",
        action="append_const",
        const=re.compile("|".join(READ_WORDS), re.IGNORECASE),
        help='remove words that the model claims to read, as in: with the words "..." on it',
    )
    add("--errors", metavar="FILE", help="write inputs that failed there, as lines of JSON; later runs pass them by")
    add("--retry-errors", action="store_true", help="try the inputs in --errors again")
    add("--fail-fast", action="store_true", help="end at the first input that fails")
    add("--no-progress", action="store_true", help="no bar, not on a terminal either")


def run_files(args: argparse.Namespace, model: Model, compute: Compute, questions: Sequence[str]) -> int:
    """Run a task over the inputs of the command line. Returns the exit code.

    Args:
        args: The arguments of ``add_input_arguments`` and ``add_output_arguments``.
        model: Decides which files of a folder are inputs.
        compute: The task, which takes options for reading.
        questions: Asked about each input; none for captions.
    """
    kind = _output_kind(args)
    asked: Sequence[str | None] = questions or [None]
    with contextlib.ExitStack() as stack:
        walk = Walk(
            paths=args.paths,
            suffixes=VIDEO_SUFFIXES if model.config.is_video else IMAGE_SUFFIXES,
            recursive=args.recursive,
            follow_links=args.follow_links,
            relative=kind in ("jsonl", "txt", "parquet") and not args.json,
            null=args.null,
            shard=args.shard,
            image_column=args.image_column,
            ignored=_own_files(args),
            ignored_suffix=args.caption_extension if kind == "txt" else None,
        )
        console = Console(None if args.no_progress else walk.count)
        stack.callback(console.close)
        stop = Stop()
        if args.files_from is not None:
            walk.files_from = _InterruptibleReads(stack.enter_context(_open_list(args.files_from)), stop)
        errors = _open_errors(args)
        output = _open_output(args, kind, walk, asked, console)
        run = Run(
            task=functools.partial(compute, batch_size=args.batch_size, workers=args.workers or _default_workers()),
            num_results=len(asked),
            output=output,
            errors=errors,
            edit=TextEdit(prefix=args.prefix, suffix=args.suffix, remove=args.remove_words),
            fail_fast=args.fail_fast,
            unique=walk.root is not None or not (args.out or kind == "txt"),
            on_error=console.message,
            on_progress=lambda counts: console.progress(
                counts.total, counts.done_before + counts.failed_before, counts.failed
            ),
            write_errors=kind == "jsonl" and not args.out and errors is None,
            stop=stop,
        )
        walk.skip = run.skip
        complete = False
        try:
            with stop.on_signals():
                complete = run.process(walk)
        finally:
            failing = sys.exc_info()[0] is not None
            with contextlib.suppress(OutputError) if failing else contextlib.nullcontext():
                output.close(complete=complete)
                if errors is not None:
                    errors.close(complete=complete)
        console.close()
        return _report(args, kind, walk, run.counts, stop, console)


def check(args: argparse.Namespace) -> None:
    """Refuse arguments that do not go together, before a model is loaded."""
    if not args.paths and args.files_from is None:
        raise UsageError("expected a PATH or --files-from")
    if args.retry_errors and not args.errors:
        raise UsageError("--retry-errors: needs --errors, the file of an earlier run")
    if args.json and args.output not in (None, "jsonl"):
        raise UsageError(f"--json: lines of JSON, which --output {args.output} are not")
    extension = args.caption_extension
    if "/" in extension or not extension.strip(".") or not extension.isprintable():
        raise UsageError(f"--caption-extension: expected an ending such as .txt, got {args.caption_extension!r}")
    if not args.caption_extension.startswith("."):
        args.caption_extension = "." + args.caption_extension
    # Files of results replace others of their name, which must not be the inputs.
    for option, path in (("caption-extension", args.caption_extension), ("out", args.out), ("errors", args.errors)):
        if path is not None and path.lower().endswith(_INPUT_SUFFIXES) and not (option == "out" and _is_parquet(path)):
            raise UsageError(f"--{option}: expected another ending than those of inputs, got {path!r}")
    if _output_kind(args) == "parquet" and not args.out:
        raise UsageError("--output parquet: needs --out, the file to write")
    if args.out and args.errors and os.path.abspath(args.out) == os.path.abspath(args.errors):
        raise UsageError("--errors: expected another file than --out")


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _output_kind(args: argparse.Namespace) -> str:
    if args.output is not None:
        return str(args.output)
    ending = os.path.splitext(args.out or "")[1].lower()
    return "jsonl" if args.json else {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}.get(ending, "text")


def _own_files(args: argparse.Namespace) -> frozenset[str]:
    """Return the files that a run writes, which are not among its inputs."""
    endings = ("", f".{args.existing}-part", ".jsonl-part", f".jsonl-part.{args.existing}-part")
    own = [args.out + ending for ending in endings] if args.out else []
    return frozenset(map(os.path.abspath, own + ([args.errors] if args.errors else [])))


def _is_single(walk: Walk) -> bool:
    """Return whether there is one input: its text is then printed without a name."""
    if walk.files_from is not None or len(walk.paths) > 1:
        return False
    return len(list(islice(dataclasses.replace(walk, report=WalkReport()), 2))) <= 1


def _open_list(path: str) -> Any:
    if path == "-":
        if sys.stdin is None:
            raise OutputError("--files-from: standard input is closed")
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise ArgumentError(f"--files-from: {path}: {error.strerror}") from None


class _InterruptibleReads:
    """A file whose reads a signal interrupts: a list may come from a pipe that nobody writes to."""

    def __init__(self, file: IO[bytes], stop: Stop) -> None:
        self._read: Callable[[int], bytes] = getattr(file, "read1", file.read)
        self._stop = stop

    def read(self, size: int) -> bytes:
        try:
            with self._stop.waiting():
                return self._read(size)
        except OSError as error:
            raise ArgumentError(f"--files-from: {error.strerror}") from None


def _open_errors(args: argparse.Namespace) -> LineFile | None:
    if not args.errors:
        return None
    return LineFile(args.errors, JsonRecords(), fresh=args.retry_errors or args.existing != "skip")


def _open_output(
    args: argparse.Namespace,
    kind: str,
    walk: Walk,
    asked: Sequence[str | None],
    console: Console,
) -> Output:
    joining: dict[str, Any] = {"existing": args.existing, "separator": args.separator}
    if kind == "txt":
        folder = walk.root or ""
        part = "" if args.shard is None else f"-{args.shard[0] + 1}-of-{args.shard[1]}"
        journal = os.path.join(args.out or folder, f".gitfast-{args.existing}{part}-part")
        return SidecarFiles(args.caption_extension, folder=args.out, root=folder or None, journal=journal, **joining)
    if kind == "parquet":
        return ParquetFile(args.out, asked, **joining)
    if args.out:
        records = JsonRecords() if kind == "jsonl" else TextRecords(with_question=asked[0] is not None)
        return LineFile(args.out, records, asked, **joining)
    if sys.stdout is None:
        raise OutputError("standard output: closed")
    if kind == "jsonl":
        lines = functools.partial(_json_lines, asked)
    else:
        lines = functools.partial(_text_lines, asked, len(asked) > 1 or not _is_single(walk))
    return StreamOutput(sys.stdout, lines, console.clear)


def _json_lines(asked: Sequence[str | None], item: Item, results: Sequence[Result]) -> list[str]:
    records = JsonRecords()
    pairs = zip(asked, results, strict=True)
    return [records.line(item.name, question, result).decode() for question, result in pairs]


def _text_lines(asked: Sequence[str | None], labelled: bool, item: Item, results: Sequence[Result]) -> list[str]:
    if not labelled:
        return [printable(result.text) for result in results]
    pairs = zip(asked, results, strict=True)
    return [
        "\t".join(escape(field) for field in (item.name, question, result.text) if field is not None)
        for question, result in pairs
    ]


def _report(args: argparse.Namespace, kind: str, walk: Walk, counts: Counts, stop: Stop, console: Console) -> int:
    """Report at the end what a run passed by. Returns the exit code."""
    report, to_files = walk.report, bool(args.out) or kind == "txt"
    if stop.signal is not None:
        console.message("interrupted" + ("; the same command goes on from here" if to_files else ""))
        return 128 + stop.signal
    for folder in report.unreadable:
        console.message(folder)
    if report.num_unreadable > len(report.unreadable):
        console.message(f"and {report.num_unreadable - len(report.unreadable)} more folders that cannot be read")
    if report.skipped:
        named = [f"{extension} ({count})" for extension, count in report.skipped.most_common(_MAX_NAMED)]
        more = ", ..." if len(report.skipped) > _MAX_NAMED else ""
        console.message(f"skipped {_count(report.skipped.total(), 'file')} of other kinds: {', '.join(named)}{more}")
    if report.irregular:
        console.message(f"skipped {_count(report.irregular, 'name')} of pipes, devices or broken links")
    if report.linked_folders:
        console.message(f"skipped {_count(report.linked_folders, 'link')} to folders; --follow-links goes into them")
    if to_files:
        parts = [f"{counts.written} written", f"{counts.done_before} done before"]
        parts += [f"{counts.failed} failed"] if counts.failed else []
        parts += [f"{counts.failed_before} failed before; --retry-errors tries them"] if counts.failed_before else []
        console.message(", ".join(parts))
    if not counts.total and args.shard is None:
        console.message("no files to read in the folders given")
        return 1
    return 1 if counts.failed or counts.failed_before or report.num_unreadable else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _default_workers() -> int:
    return min(_MAX_WORKERS, usable_cpus())


def _shard(text: str) -> tuple[int, int]:
    """Parse I/N with 1 <= I <= N to (I - 1, N)."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, got {text!r}")
    return int(match[1]) - 1, int(match[2])


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {text!r}: {error}") from None
