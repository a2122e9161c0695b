"""Write an HTML report: the scores, how they are spread, and the pictures with their captions, the worst first.

The page is one file without scripts; thumbnails are inside it.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gitfast.errors import ImageError
from gitfast.inputs.pictures import load_image

_THUMBNAIL = 320  # pixels of the longer edge, shown at half of that
_BARS = 20

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --bar: #5b7fb8; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 60rem; }
h1 { font-size: 1.4rem; font-weight: 600; margin: 0; }
h2 { font-size: 1rem; font-weight: 600; margin: 2.5rem 0 .75rem; }
p.about, .quiet { color: var(--quiet); }
dl.scores { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1.5rem 0; }
dl.scores div { min-width: 5rem; }
dt { color: var(--quiet); font-size: .85rem; }
dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.bars { display: flex; align-items: flex-end; gap: 2px; height: 6rem; border-bottom: 1px solid var(--line); }
.bars i { flex: 1; background: var(--bar); min-height: 1px; }
.axis { display: flex; justify-content: space-between; color: var(--quiet); font-size: .85rem; }
ol { list-style: none; padding: 0; display: grid; gap: 1.25rem; }
@media (min-width: 56rem) { ol { grid-template-columns: 1fr 1fr; } }
li { display: grid; grid-template-columns: 10rem 1fr; gap: 1rem; border-top: 1px solid var(--line); padding-top: 1rem; }
li img { max-width: 10rem; max-height: 10rem; border-radius: 3px; }
li strong { font-weight: 600; display: block; overflow-wrap: anywhere; }
.references { margin: .25rem 0; color: var(--quiet); font-size: .9rem; }
.score { float: right; font-variant-numeric: tabular-nums; margin-left: .75rem; }
.file { font-size: .8rem; color: var(--quiet); overflow-wrap: anywhere; }
@media (max-width: 30rem) { li { grid-template-columns: 6rem 1fr; } }
"""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture of a report: its generated text, the reference texts, and a score from 0 to ``Report.best``."""

    name: str
    text: str
    references: Sequence[str]
    score: float
    question: str | None = None
    image: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The contents of a report.

    Attributes:
        title, about: The heading, and a line that says which model and data these are.
        scores: Scores of the whole data set, by name.
        examples: Every picture; ``write_report`` shows some of them.
        score_name, best: The score by which examples are sorted, and the highest there is.
    """

    title: str
    about: str
    scores: Mapping[str, float]
    examples: Sequence[Example]
    score_name: str
    best: float


def write_report(report: Report, path: str | Path, *, worst: int = 60, others: int = 12) -> None:
    """Write a report with the ``worst`` examples and ``others`` more, evenly chosen from the rest.

    Raises:
        OSError: the file cannot be written.
    """
    ordered = sorted(report.examples, key=lambda example: example.score)
    rest = ordered[worst:]
    chosen = rest[:: max(1, len(rest) // max(1, others))][:others] if others else []
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{_escape(report.title)}</title><style>{_STYLE}</style>",
        f"<h1>{_escape(report.title)}</h1><p class=about>{_escape(report.about)}</p>",
        "<dl class=scores>",
        *(f"<div><dt>{_escape(name)}</dt><dd>{value:.3f}</dd></div>" for name, value in report.scores.items()),
        f"</dl><h2>{_escape(report.score_name)} of {len(ordered)}</h2>",
        _histogram([example.score for example in ordered], report.best),
        f"<h2>The lowest {min(worst, len(ordered))}</h2><ol>",
        *map(_item, ordered[:worst]),
        "</ol>",
    ]
    if chosen:
        parts += [f"<h2>{len(chosen)} of the others</h2><ol>", *map(_item, chosen), "</ol>"]
    Path(path).write_text("\n".join(parts) + "\n", encoding="utf-8", errors="backslashreplace")


def _item(example: Example) -> str:
    picture = _thumbnail(example.image)
    image = f'<img src="{picture}" alt="{_escape(example.text)}">' if picture else "<span class=quiet>no picture</span>"
    question = f"<span class=quiet>{_escape(example.question)}</span>" if example.question else ""
    references = "".join(f"<div>{_escape(text)}</div>" for text in dict.fromkeys(example.references))
    return (
        f"<li><div>{image}</div><div><span class=score>{example.score:.2f}</span>{question}"
        f"<strong>{_escape(example.text) or '<span class=quiet>(nothing)</span>'}</strong>"
        f"<div class=references>{references}</div>"
        f"<span class=file>{_escape(example.name)}</span></div></li>"
    )


def _histogram(scores: Sequence[float], best: float) -> str:
    counts = [0] * _BARS
    for score in scores:
        counts[min(_BARS - 1, int(score / best * _BARS))] += 1
    highest = max(counts) or 1
    bars = "".join(
        f'<i style="height:{100 * count / highest:.1f}%" title="{i * best / _BARS:.2f} to '
        f'{(i + 1) * best / _BARS:.2f}: {count}"></i>'
        for i, count in enumerate(counts)
    )
    return f"<div class=bars>{bars}</div><div class=axis><span>0</span><span>{best:g}</span></div>"


def _thumbnail(path: Path | None) -> str | None:
    """Make a JPEG as a data URI; None where the picture cannot be read."""
    if path is None:
        return None
    try:
        picture = load_image(path)
    except ImageError:
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
