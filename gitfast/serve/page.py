"""The two pages, each one file with its styles and script inside, and headers under which nothing else may run."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True)
class Page:
    body: bytes
    headers: dict[str, str]


def _load(name: str) -> Page:
    body = (Path(__file__).parent / name).read_bytes()
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for match in _INLINE.finditer(body):
        digest = base64.b64encode(hashlib.sha256(match[2]).digest()).decode()
        hashes[match[1]].append(f"'sha256-{digest}'")
    policy = [
        "default-src 'none'",
        f"script-src {' '.join(hashes[b'script']) or chr(39) + 'none' + chr(39)}",
        f"style-src {' '.join(hashes[b'style'])}",
        "img-src blob: data:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {"Content-Security-Policy": "; ".join(policy), "Cache-Control": "no-cache"}
    return Page(body, headers)


PAGE = _load("page.html")
DOCS = _load("docs.html")
