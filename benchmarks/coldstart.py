"""Time a process's first caption: python benchmarks/coldstart.py [--models git-base git-large] [--json FILE]

Every row is a process of its own that imports gitfast, loads a checkpoint's folder (random weights in a published
shape, float32) and captions one picture with 20 tokens: the best of some tries. "cache": the file was just read;
"disk": it was dropped from the page cache first, and what the process then read of the storage is beside its times. CPU
seconds, of all threads, are what a busy machine leaves comparable.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import save_file

from gitfast.bench.machine import machine_facts
from gitfast.bench.report import check_writable
from gitfast.bench.workload import RandomWeights
from gitfast.checkpoints.published import SHAPES

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "images" / "five-red-squares.png"
DTYPES = ("float32", "bfloat16", "int8")
NEW_TOKENS = 20

PROGRAM = """
import json, sys, time
from pathlib import Path

def storage_mb():
    return int(next(l for l in Path("/proc/self/io").read_text().splitlines() if l.startswith("read_bytes")).split()[1])

folder, image, dtype, tokens = sys.argv[1:]
def now():
    times.append((time.perf_counter(), time.process_time()))

before, times = storage_mb(), []
now()
import gitfast
now()
model = gitfast.load(folder, dtype=dtype)
now()
model.caption(image, max_new_tokens=int(tokens))
now()
model.caption(image, max_new_tokens=int(tokens))
now()
steps = {}
for name, begin, end in zip(("import", "load", "first_caption", "second_caption"), times, times[1:]):
    steps[name + "_s"], steps[name + "_cpu_s"] = end[0] - begin[0], end[1] - begin[1]
print(json.dumps({**steps, "read_mb": (storage_mb() - before) / 1e6}))
"""


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write a folder with random weights in the shape of a published checkpoint; return its file of weights."""
    config = SHAPES[name]
    weights = folder / "model.safetensors"
    save_file(dict(RandomWeights(config)), weights)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "float32"}))
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    words = [special.get(i, f"w{i}") for i in range(config.vocab_size)]
    (folder / "vocab.txt").write_text("\n".join(words))
    with weights.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet cannot be dropped
    return weights


def drop_from_cache(path: Path) -> None:
    """Forget a file's pages (Linux)."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(weights: Path, dtype: str, from_disk: bool) -> dict[str, float]:
    """Run one process."""
    if from_disk:
        drop_from_cache(weights)
    else:
        weights.read_bytes()
    command = [sys.executable, "-c", PROGRAM, weights.parent, IMAGE, dtype, NEW_TOKENS]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    times: dict[str, float] = json.loads(done.stdout)
    return times


def total(times: dict[str, float], clock: str = "s") -> float:
    """Return the seconds from the import to the first caption."""
    return sum(times[f"{step}_{clock}"] for step in ("import", "load", "first_caption"))


def main() -> None:
    """Print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["git-base", "git-large"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--by", choices=["wall", "cpu"], default="wall", help="the clock that says which try is best")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written for a while: the disk measured")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.json:
        check_writable("json", args.json)
    rows: list[dict[str, object]] = []
    print("| model | dtype | from | import | load | first caption | together | second caption | CPU, together | read |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in args.models:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            weights = write_checkpoint(model, Path(folder))
            for dtype in args.dtypes:
                for source in ("cache", "disk"):
                    tries = [measure(weights, dtype, source == "disk") for _ in range(args.tries)]
                    best = min(tries, key=lambda times: total(times, "s" if args.by == "wall" else "cpu_s"))
                    rows.append({"model": model, "dtype": dtype, "from": source, **best})
                    rows[-1] |= {"together_s": total(best), "together_cpu_s": total(best, "cpu_s")}
                    names = (
                        "import_s",
                        "load_s",
                        "first_caption_s",
                        "together_s",
                        "second_caption_s",
                        "together_cpu_s",
                    )
                    seconds = " | ".join(f"{rows[-1][name]:.2f} s" for name in names)
                    print(f"| {model} | {dtype} | {source} | {seconds} | {best['read_mb']:.0f} MB |", flush=True)
    if args.json:
        facts = {"machine": machine_facts(), "tries": args.tries, "new_tokens": NEW_TOKENS, "rows": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
