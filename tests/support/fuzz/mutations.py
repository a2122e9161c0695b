"""Mutations that keep the structure of JSON, safetensors, pickles, PNG and JPEG."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from typing import Any

from support.fuzz.loop import MAX_INPUT_BYTES

OPCODES = b".\x80\x95N\x88\x89JKM\x8aGX\x8cUTCB]})\x85\x86\x87(tlaesuqr\x94hjc\x93QRbi0\x81"
ODD_VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e-300, float("nan")]
ODD_VALUES += [float("inf"), float("-inf"), "", "\ud800", "x" * 600, "1", "../x", "/etc/passwd", [], {}, [[[]]]]
ODD_VALUES += [{"a": {}}, ["a"] * 50, {"type": "Replace"}, {"content": "[UNK]"}, [1] * 300, [[1]], [1.5, None, "a"]]


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value anywhere in a JSON object replaced, nested, copied from elsewhere, renamed or dropped."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return data
    place = values
    while isinstance(place, (dict, list)) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if isinstance(place[key], (dict, list)) and place[key] and rng.randrange(3):
            place = place[key]
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del place[key]
        elif kind == 1:
            place[key] = [place[key]] * rng.randrange(4)
        elif kind == 2 and isinstance(place, dict):
            place[rng.choice(list(place))] = place[key]
        elif kind == 3 and isinstance(place, dict):
            place[rng.choice(("", "x", key.upper(), f"{key}_", "\ud800"))] = place.pop(key)
        elif kind == 4 and isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
            place[key] = rng.choice((-place[key], place[key] + 1, place[key] - 1, place[key] * 2, place[key] * 1000))
        else:
            place[key] = rng.choice(ODD_VALUES)
        break
    try:
        return json.dumps(values).encode()
    except (ValueError, RecursionError):
        return data


def changed_header(data: bytes, rng: random.Random) -> bytes:
    """The JSON header of a safetensors file changed, its length right."""
    length = int.from_bytes(data[:8], "little")
    header = changed_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def changed_opcodes(data: bytes, rng: random.Random) -> bytes:
    """An opcode put somewhere, or a part of the pickle repeated."""
    place = rng.randrange(len(data) + 1)
    if rng.randrange(2):
        return data[:place] + bytes([rng.choice(OPCODES)]) + data[place:]
    end = place + rng.randrange(1, 60)
    return data[:end] + data[place:end] * _few(200, rng) + data[end:]


def sealed_png(data: bytes, rng: random.Random) -> bytes:
    """One chunk of a PNG changed, repeated or dropped, its checksum right."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], bytearray(data[place + 8 : place + 8 + length])))
        place += 12 + length
    if not chunks:
        return data
    index = rng.randrange(len(chunks))
    body = chunks[index][1]
    choice = rng.randrange(4)
    if choice == 0 and body:
        body[rng.randrange(len(body))] = rng.randrange(256)
    elif choice == 1:
        chunks.insert(index, rng.choice(chunks))
    elif choice == 2:
        del chunks[index]
    else:
        text = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(rng.randbytes(100) * _few(20_000, rng))
        chunks.insert(index, (b"iTXt", bytearray(text)))
    written = (
        struct.pack(">I", len(part)) + name + bytes(part) + struct.pack(">I", zlib.crc32(name + bytes(part)))
        for name, part in chunks
    )
    return data[:8] + b"".join(written)


def repeated_scan(data: bytes, rng: random.Random) -> bytes:
    """A JPEG whose bytes from one marker on come several times, rarely so often that milliseconds go into the walk."""
    starts = [match.start() for match in re.finditer(rb"\xff[^\0\xff]", data)]
    if not starts:
        return data
    begin, end = sorted((rng.choice(starts), rng.choice(starts)))
    most = 2 + MAX_INPUT_BYTES // (1 + end - begin)
    times = _few(most if rng.randrange(32) == 0 else min(most, 20), rng)
    return data[:end] + data[begin:end] * times + data[end:]


def _few(most: int, rng: random.Random) -> int:
    """A number from 1 below ``most``, as likely between 1 and 10 as between 10 and 100."""
    return int(most ** rng.random())
