"""Measure a run over a folder beside its captions: the growth of memory, and the time to find where it was.

    python benchmarks/folder.py [--pictures 5000] [--paths 1000000] [--folder DIR]

Three runs of ``gitfast caption`` with the bundled model, each in a process of its own:

- pictures: captions of so many JPEG pictures of 640 x 480; memory after a tenth of them and at the end.
- resume: a folder of so many files, all of which the output has; the time until that is known, and the most memory.
- list: the same files as a list on standard input.

Prints the figures with the bounds that they are held to, and fails if one is missed. Seconds are of CPU, of which a
resume uses one, so that a busy machine does not count; those on the clock stand beside them. Files are made in
``--folder`` (default: a temporary one) and removed; a million of them take some 4 GB of a disk with blocks of 4 kB, and
less in memory (/dev/shm).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

MAX_GROWTH_MB = 10.0  # from a tenth of the pictures to the last
MAX_MB = 200.0
MAX_RESUME_S = 5.0
POLL_INTERVAL_S = 0.05
COMMAND = [sys.executable, "-m", "gitfast", "caption", "--no-progress"]


@dataclass
class Figures:
    """The figures of one run: seconds, and (lines of output, MB resident) as sampled."""

    seconds: float
    cpu_seconds: float
    samples: list[tuple[int, float]]
    peak_mb: float
    code: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5_000)
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        good = [measure_pictures(Path(work), args.pictures)] if args.pictures else []
        good += [*measure_resume(Path(work), args.paths)] if args.paths else []
    return 0 if all(good) else 1


def measure_pictures(work: Path, count: int) -> bool:
    folder = work / "pictures"
    write_pictures(folder, count)
    out = work / "captions.jsonl"
    figures = run([folder, "--out", out], out)
    settled = next(mb for lines, mb in figures.samples if lines >= count // 10)
    growth = max(mb for lines, mb in figures.samples if lines >= count // 10) - settled
    each = 1e3 * figures.cpu_seconds / count
    rate = count / figures.seconds
    print(f"pictures  {count:,} captions in {figures.seconds:.1f} s, {rate:.0f}/s, {each:.1f} CPU-ms each")
    return report("pictures", "growth of memory", growth, MAX_GROWTH_MB, "MB") and figures.code == 0


def measure_resume(work: Path, count: int) -> Iterator[bool]:
    folder, out, names = work / "paths", work / "done.jsonl", work / "names"
    folder.mkdir()
    with out.open("w") as lines, names.open("w") as listed:
        for i in range(count):
            name = f"{i:07}.jpg"
            os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
            record = {"file_name": name, "text": "a photo of a dog on a beach", "score": -1.5, "finish_reason": "stop"}
            lines.write(json.dumps(record) + "\n")
            listed.write(f"{folder / name}\n")
    figures = run([folder, "--out", out], out)
    yield figures.code == 0
    clock = f"s of CPU, {figures.seconds:.1f} s in all"
    yield report("resume", f"{count:,} done", figures.cpu_seconds, MAX_RESUME_S, clock)
    yield report("resume", "most memory", figures.peak_mb, MAX_MB, "MB")
    text = out.read_text().replace('"file_name": "', f'"file_name": "{folder}/')
    out.write_text(text)
    with names.open("rb") as listed:
        figures = run(["--files-from", "-", "--out", out], out, stdin=listed)
    yield figures.code == 0
    clock = f"s of CPU, {figures.seconds:.1f} s in all"
    yield report("list", f"{count:,} done", figures.cpu_seconds, MAX_RESUME_S, clock)
    yield report("list", "most memory", figures.peak_mb, MAX_MB, "MB")


def report(run: str, what: str, value: float, bound: float, unit: str) -> bool:
    print(f"{run:<8}  {what}: {value:.1f} {unit} (bound {bound:g})", flush=True)
    return value <= bound


def write_pictures(folder: Path, count: int) -> None:
    """Write twenty different pictures under many names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    sources = []
    for i in range(min(20, count)):
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        sources.append(folder / f"{i:07}.jpg")
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(sources[-1], quality=90)
    for i in range(len(sources), count):
        os.link(sources[i % len(sources)], folder / f"{i:07}.jpg")


def run(arguments: list[object], out: Path, **streams: object) -> Figures:
    """Run the command, looking at its memory and output now and then."""
    begin, before = time.perf_counter(), os.times()
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=subprocess.DEVNULL, **streams)  # type: ignore[call-overload]
    samples: list[tuple[int, float]] = []
    lines = peak = 0
    with open(out, "ab+") as written:
        written.seek(0)
        while process.poll() is None:
            lines += written.read().count(b"\n") if not samples or out.stat().st_size < 1 << 26 else 0
            status = memory_of(process.pid)
            if status is not None:
                samples.append((lines, status[0]))
                peak = max(peak, status[1])
            time.sleep(POLL_INTERVAL_S)
    code, after = process.wait(), os.times()
    cpu_seconds = sum(after[2:4]) - sum(before[2:4])  # of children
    return Figures(time.perf_counter() - begin, cpu_seconds, samples, peak, code)


def memory_of(pid: int) -> tuple[float, float] | None:
    """Return (MB resident now, peak MB) of a process; None when it has ended."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main())
