"""Ways to damage a file, all drawn from one random generator."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

Damage = Callable[[random.Random, bytes], bytes]

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        3,
        10**6,
        2**31,
        2**63,
        10**30,
        -(10**30),
        0.5,
        -0.5,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "x" * 10_000, "\0", "\ud800", "[/red]", "nan", "1" * 5_000, "evil_module:Env-v0", "os.system"),
    *("../../outside", "/dev/zero", "/etc/passwd", "a/b", "CartPole-v1", "cuda:99"),
    *([], {}, [[]], [None], {"a": 1}, [1, "a", None]),
    *({"#": "class", "name": "os.system"}, {"#": "pickled", "name": "x"}, {"#": "array", "name": "x"}),
    *({"#": "Tier", "slots": 10**9, "rate": 1, "compressor": "mean"}, {"#": "float", "value": "nan"}),
)
"""Values that take the place of a part of JSON."""


# Bytes


def cut(rng: random.Random, content: bytes) -> bytes:
    """Truncate."""
    return content[: rng.randrange(len(content) + 1)]


def flip(rng: random.Random, content: bytes) -> bytes:
    """Flip up to 20 bits."""
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 20)):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def splice(rng: random.Random, content: bytes) -> bytes:
    """Replace a stretch by another one, by zeros or by noise."""
    start, length, other = rng.randrange(len(content) + 1), rng.randint(0, 200), rng.randrange(len(content) + 1)
    new = rng.choice([content[other : other + length], bytes(length), rng.randbytes(length), b""])
    return content[:start] + new + content[start + rng.randint(0, 200) :]


def overwrite_number(rng: random.Random, content: bytes) -> bytes:
    """Overwrite four or eight bytes by a number that is small, huge or negative: sizes lie."""
    form, numbers = rng.choice([("<I", (0, 1, 2**31, 2**32 - 1)), ("<Q", (0, 2**40, 2**63, 2**64 - 1))])
    place, new = rng.randrange(len(content) + 1), struct.pack(form, rng.choice(numbers))
    return content[:place] + new + content[place + len(new) :]


def nothing_left(rng: random.Random, content: bytes) -> bytes:
    """Return something else: nothing, noise, deep brackets, a large number."""
    deep = b"[" * 100_000 + b"]" * 100_000
    return rng.choice([b"", rng.randbytes(300), deep, b'{"a":' * 5_000, b"9" * 10_000, b"\xff\xfe", b"null", b"[]"])


BYTES: tuple[Damage, ...] = (cut, flip, splice, overwrite_number, nothing_left)


# JSON


def change_json(rng: random.Random, content: bytes) -> bytes:
    """Replace, remove or add parts of JSON."""
    data = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 3])):
        data = _changed(rng, data)
    text = json.dumps(data)
    if rng.random() < 0.05:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


def _changed(rng: random.Random, data: Any) -> Any:
    places = _places(data)
    if not places:
        return rng.choice(ODD)
    table, key = rng.choice(places)
    action = rng.random()
    if action < 0.15:
        del table[key]
    elif action < 0.2 and isinstance(table, dict):
        table[rng.choice(["x", "#", "", "predict", "a" * 300])] = rng.choice(ODD)
    elif action < 0.25:
        table[key] = _nested(table[key], rng.choice([3, 200]))
    elif action < 0.3:
        table[key] = copy.deepcopy(rng.choice(places)[0])
    else:
        table[key] = copy.deepcopy(rng.choice(ODD))
    return data


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Return all parts of JSON, each as its list or table and its key."""
    found: list[tuple[Any, Any]] = []
    left = [data]
    while left:
        part = left.pop()
        pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, value in pairs:
            found.append((part, key))
            left.append(value)
    return found


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


# Safetensors


def change_tensors(rng: random.Random, content: bytes) -> bytes:
    """Change the header or the numbers of safetensors."""
    length = int.from_bytes(content[:8], "little")
    header, numbers = content[8 : 8 + length], bytearray(content[8 + length :])
    if rng.random() < 0.5 and numbers:
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(0, max(1, len(numbers) - 4), 4)
            numbers[place : place + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), -1e30, -1.0]))
    else:
        header = change_json(rng, header) if rng.random() < 0.8 else rng.choice(BYTES)(rng, header)
    declared = len(header) if rng.random() < 0.9 else rng.choice([0, 2**20, 2**40, 2**63])
    return declared.to_bytes(8, "little") + header + bytes(numbers)


# Zip archives


def change_zip(rng: random.Random, content: bytes) -> bytes:
    """Damage an entry of an archive, or the archive."""
    entries = unzipped(content)
    name = rng.choice(sorted(entries))
    if rng.random() < 0.75:
        kind = change_json if name.endswith(".json") else change_tensors if name.endswith(".safetensors") else flip
        change = kind if rng.random() < 0.8 else rng.choice(BYTES)
        return zipped({**entries, name: change(rng, entries[name])}.items())
    return _changed_archive(rng, content, entries, name)


def _changed_archive(rng: random.Random, content: bytes, entries: dict[str, bytes], name: str) -> bytes:
    others = {other: part for other, part in entries.items() if other != name}
    odd = rng.choice(["../../outside", "/etc/x", "a\0b", "x" * 5_000, "data", "trusted.pickle", "more.json", "é.json"])
    ways: list[Callable[[], bytes]] = [
        lambda: zipped(others.items()),
        lambda: zipped([*entries.items(), (name, entries[rng.choice(sorted(entries))])]),
        lambda: zipped([*entries.items(), (odd, rng.randbytes(99))]),
        lambda: zipped([*others.items(), (odd, entries[name])]),
        lambda: zipped([*others.items(), (name, bytes(10**7))], zipfile.ZIP_DEFLATED),
        lambda: zipped([*others.items(), (name, content)]),
        lambda: zipped([("model.zip", content)]),
        lambda: zipped(entries.items(), rng.choice([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])),
        lambda: content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00", 1),
        lambda: overwrite_number(rng, content[-400:]).join([content[:-400], b""]),
    ]
    return rng.choice(ways)()


def unzipped(content: bytes) -> dict[str, bytes]:
    """Return the entries of an archive by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive of entries, of which two may have one name."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of two entries with one name
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()
