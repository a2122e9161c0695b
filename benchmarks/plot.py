"""Draws benchmarks/caption.py's JSON: python benchmarks/plot.py RESULT.json PICTURE.png

Every bar is a whole caption, to the first token and after it; the number is the ratio to the first engine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(result: dict, picture: Path) -> None:
    rows = sorted(result["results"], key=lambda row: -row["caption_ms"])
    names = [row["engine"].replace(":", ", ") for row in rows]
    first = [row["first_token_ms"] for row in rows]
    rest = [row["caption_ms"] - row["first_token_ms"] for row in rows]
    ours = [row["engine"].startswith("gitfast") for row in rows]
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.34 * len(rows)))
    for values, left, colours, label in (
        (first, [0] * len(rows), ("#8a8f98", "#c2410c"), "to the first token"),
        (rest, first, ("#c9ccd1", "#fdba74"), "the others"),
    ):
        axes.barh(names, values, left=left, color=[colours[mine] for mine in ours], label=label)
    for i, row in enumerate(rows):
        axes.text(row["caption_ms"], i, f" {row['speedup']:.2f}x", va="center", fontsize=9)
    settings, machine = result["settings"], result["machine"]
    axes.set_xlabel("ms for a caption; dark: to the first token, light: the other tokens")
    axes.set_title(
        f"{settings['shape']}, {settings['new_tokens']} tokens, {settings['threads']} threads of {machine['cpu']}",
        fontsize=10,
        loc="left",
    )
    axes.set_xlim(0, max(row["caption_ms"] for row in rows) * 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(json.loads(arguments.result.read_text()), arguments.picture)
