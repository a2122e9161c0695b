"""A run of captions as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gitfast.bench.caption import ClientsRow, Report, Row
from gitfast.bench.report import where
from gitfast.bench.roofline import COLOURS, import_pyplot
from gitfast.bench.spread import Spread

_COLUMNS = (
    f"{'way':<36} {'threads':>7} {'batch':>5} {'encode ms':>9} {'first ms':>8} {'token ms':>8} {'caption ms':>10}"
    f" {'(quartiles)':<17} {'floor':>8} {'per s':>8} {'speed':>6}  {'equal tokens':<12} {'error':>8}"
)
_CLIENT_COLUMNS = (
    f"{'way':<36} {'threads':>7} {'clients':>7} {'captions/s':>10} {'median ms':>9} {'p95 ms':>8} {'MB a lane':>9}"
)


def headline(report: Report) -> Iterator[str]:
    weights = "random weights" if report.random_weights else "its own weights"
    captions = f"{report.model}, {weights}, {report.new_tokens} new tokens, medians of {report.rounds} rounds in turns"
    yield f"{where(report)}; {captions}"
    yield f"measured ceilings: {report.ceilings.describe()}"
    yield "encode: pixels to what text is decoded over (transformers adds keys and values with the first token)"
    yield "first: from pixels to the first token; token: each one more; speed: times as fast as the first way"
    yield "floor: the least ms at those ceilings; less than that comes out of the caches, or of a machine busier before"
    yield "equal tokens: those that float64 says, to the first that differs; error: of log-probabilities"
    yield _COLUMNS


def line(row: Row) -> str:
    caption, equal = row.caption_ms, "not checked"
    if row.equal_tokens is not None:
        equal = "all" if row.equal_tokens == row.checked_tokens else f"{row.equal_tokens} of {row.checked_tokens}"
    error = "-" if row.error is None else f"{row.error:.1e}"
    decoded = f"  decoded by {row.decoded_by}" if row.decoded_by else ""
    return (
        f"{row.way:<36} {row.threads:>7} {row.batch:>5} {row.encode_ms.median:9.2f} {row.first_token_ms.median:8.2f}"
        f" {row.per_token_ms.median:8.3f} {caption.median:10.2f} {f'({caption.q1:.2f}-{caption.q3:.2f})':<17}"
        f" {row.floor_ms:8.2f} {row.captions_per_s:8.1f} {row.speed.median:6.2f}  {equal:<12} {error:>8}{decoded}"
    )


def clients_headline() -> str:
    return _CLIENT_COLUMNS


def clients_line(row: ClientsRow) -> str:
    return (
        f"{row.way:<36} {row.threads:>7} {row.clients:>7} {row.captions_per_s.median:10.2f}"
        f" {row.latency_ms.median:9.1f} {row.p95_ms:8.1f} {'-' if row.memory_mb is None else f'{row.memory_mb:.1f}':>9}"
    )


def draw(report: Report, picture: Path) -> None:
    """Draw captions a second and latency over the number of clients; without clients, the phases of captions."""
    pyplot = import_pyplot()
    columns = 2 if report.clients else 1
    figure, axes = pyplot.subplots(1, columns, figsize=(4.8 * columns + 1, 4.2), layout="constrained", squeeze=False)
    if report.clients:
        _draw_clients(axes[0], report.clients)
    else:
        _draw_captions(axes[0][0], report)
    for each in axes[0]:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="0.92", linewidth=0.6)
        each.set_axisbelow(True)
    title = f"{report.model}, {report.new_tokens} tokens; {where(report)}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)


def _draw_clients(axes: Any, rows: list[ClientsRow]) -> None:
    throughput, latency = axes
    for i, (way, threads) in enumerate(dict.fromkeys((row.way, row.threads) for row in rows)):
        own = [row for row in rows if (row.way, row.threads) == (way, threads)]
        clients, colour = [row.clients for row in own], COLOURS[i % len(COLOURS)]
        label = f"{way}, {threads} threads" if len({row.threads for row in rows}) > 1 else way
        throughput.errorbar(
            clients,
            [row.captions_per_s.median for row in own],
            yerr=_error_bars([row.captions_per_s for row in own]),
            color=colour,
            marker="o",
            label=label,
        )
        latency.plot(clients, [row.latency_ms.median for row in own], color=colour, marker="o", label="median")
        latency.plot(clients, [row.p95_ms for row in own], color=colour, linestyle=":", label="95 of 100")
    for each, what in ((throughput, "captions per second"), (latency, "ms per caption: median, dotted: 95 of 100")):
        each.set_xlabel("clients at once")
        each.set_ylabel(what)
        each.set_ylim(bottom=0)
        each.set_xticks(sorted({row.clients for row in rows}))
    lines = throughput.get_legend_handles_labels()
    throughput.figure.legend(*lines, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _error_bars(spreads: list[Spread]) -> list[list[float]]:
    return [[s.median - s.q1 for s in spreads], [s.q3 - s.median for s in spreads]]


def _draw_captions(axes: Any, report: Report) -> None:
    """Draw every caption as a bar, to the first token and after it."""
    rows = sorted(report.rows, key=lambda row: -row.caption_ms.median)
    several = len({(row.threads, row.batch) for row in rows}) > 1
    names = [f"{r.way}, {r.threads} threads, batch {r.batch}" if several else r.way for r in rows]
    first = [row.first_token_ms.median for row in rows]
    rest = [row.caption_ms.median - row.first_token_ms.median for row in rows]
    ours = [row.way.startswith("gitfast") for row in rows]
    axes.barh(names, first, color=["#c2410c" if mine else "#8a8f98" for mine in ours])
    axes.barh(names, rest, left=first, color=["#fdba74" if mine else "#c9ccd1" for mine in ours])
    for i, row in enumerate(rows):
        axes.text(row.caption_ms.median, i, f" {row.speed.median:.2f}x", va="center", fontsize=9)
    axes.set_xlim(0, max(row.caption_ms.median for row in rows) * 1.15)
    axes.set_xlabel("ms; dark: to the first token, light: the others")
