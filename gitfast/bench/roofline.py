"""A roofline: how fast every case ran beside what memory and arithmetic allow. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gitfast.bench.ceilings import Ceilings
from gitfast.bench.report import where
from gitfast.bench.run import Report
from gitfast.errors import GitfastError

_LINE = {"color": "0.35", "linewidth": 1.2, "zorder": 1}
COLOURS = ("#c2410c", "#0369a1", "#4d7c0f", "#7e22ce", "#a16207", "#0f766e", "#be185d", "#374151")


def import_pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise GitfastError('plot: matplotlib is not installed: pip install "gitfast[bench]"') from None
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(report: Report, picture: Path) -> None:
    """Draw operations per second over operations per byte, log-log. Hollow points had operands in the caches."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    _draw_points(axes, report)
    _draw_ceilings(axes, report.ceilings, [row.flops / row.bytes for row in report.rows])
    axes.set_title(f"{where(report)}; filled: cold caches, hollow: warm", fontsize=10, loc="left")
    axes.set_xlabel("floating-point operations per byte")
    axes.set_ylabel("floating-point operations per second")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)


def _draw_points(axes: Any, report: Report) -> None:
    for i, kernel in enumerate(dict.fromkeys(row.kernel for row in report.rows)):
        colour = COLOURS[i % len(COLOURS)]
        for cache, face in (("warm", "none"), ("cold", colour)):
            rows = [row for row in report.rows if (row.kernel, row.cache) == (kernel, cache)]
            axes.loglog(
                [row.flops / row.bytes for row in rows],
                [row.tflop_per_s * 1e12 for row in rows],
                "o",
                markersize=5,
                markeredgecolor=colour,
                markerfacecolor=face,
                alpha=0.75,
                label=kernel if cache == "cold" else None,
            )


def _draw_ceilings(axes: Any, ceilings: Ceilings, intensities: list[float]) -> None:
    """Draw the memory ceiling left of the corner, the arithmetic ceiling right of it."""
    stream, peaks = ceilings.gb_per_s * 1e9, {d: gemm.tflop_per_s * 1e12 for d, gemm in ceilings.gemm.items()}
    low, high = min(intensities) / 5, 2 * max([*intensities, *(peak / stream for peak in peaks.values())])
    corner = max(peaks.values()) / stream
    axes.set_xlim(low, high)
    axes.plot([low, corner], [low * stream, corner * stream], **_LINE)
    read = f"{ceilings.stream} {ceilings.gb_per_s:.0f} GB/s"
    axes.annotate(read, (low, low * stream), xytext=(22, -4), textcoords="offset points", va="top", fontsize=9)
    for peak in peaks.values():
        axes.plot([peak / stream, high], [peak, peak], **_LINE)
    for dtypes in _close_together(peaks):
        name = "\n".join(f"{dtype} {peaks[dtype] / 1e12:.2g} TFLOP/s" for dtype in dtypes)
        axes.annotate(
            name, (high, peaks[dtypes[0]]), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )


def _close_together(peaks: dict[str, float]) -> Iterator[list[str]]:
    """Yield dtypes whose ceilings are within a fifth, where labels would overlap, the highest first."""
    left = sorted(peaks, key=lambda dtype: -peaks[dtype])
    while left:
        together = [dtype for dtype in left if peaks[dtype] > peaks[left[0]] / 1.2]
        yield together
        left = left[len(together) :]
