"""Strategies for files that were damaged or written by somebody else: bytes, JSON and YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz.odd_values import changed, changes

_PIECES = (
    *(b"\0", b"\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x80\x02", b".", b"R", b"(", b"\n", b"'"),
    *(b"cposix\nsystem\n", b"[" * 2000, b"{", b'"', b"1e999", b"9" * 5000, b"NaN", b"null", b"-"),
    *(b"\xed\xa0\x80", b"\\ud800"),
)
_YAML_PIECES = (
    *("&a [*a]", "*a", "&a {<<: *a}", "<<: [1]", "!!python/object/apply:os.system [x]", "!!python/name:os.system"),
    *("!!binary ==", "!!binary é", "2001-99-99", "!!timestamp 2001-13-40", "!!timestamp x", "!!int x", "!!float x"),
    *("!!bool x", "!!null x", "? [a]: b", "? {a: b}", "%YAML 9.9", "---\n---", "\t", "0x", "1_000", "0o9", "190:20:30"),
    *("!!set {a}", "!!omap [a: b]", "!!pairs [a]", "\0", "'", "{", "[" * 1000, "- " * 1000, "!!seq {}", "!!map []"),
    *("!!str {}", "&a *b", ".inf", "-.inf", ".nan", "9" * 5000, "1e400", "\U0010ffff", "\ufeff", "|", ">9", "!<"),
    *("@", "`", "=", "<<", "<<: {a: b}", "!!merge x", "0b", "+", "1:60:60", "\x85", "\u2028", "?", ": :", "{a, a}"),
)


@st.composite
def edited(draw: st.DrawFn, seeds: Sequence[bytes], reach: int | None = None) -> bytes:
    """Return a strategy for one of some files with up to six edits.

    Args:
        draw: Draws from strategies.
        seeds: Valid files.
        reach: Number of first bytes that are edited; None for all.
    """
    data = bytearray(draw(st.sampled_from(seeds)))
    places = st.integers(0, 2**32 - 1)
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        start = draw(places) % min(reach or len(data), len(data))
        kind, length = draw(st.integers(0, 5)), draw(st.integers(1, 64))
        piece = draw(st.sampled_from(_PIECES) | st.binary(min_size=1, max_size=8))
        if kind == 0:
            data[start] ^= 1 << length % 8
        elif kind == 1:
            data[start : start + len(piece)] = piece
        elif kind == 2:
            data[start:start] = piece
        elif kind == 3:
            del data[start : start + length]
        elif kind == 4:
            data[start:start] = bytes(data[start : start + length]) * draw(st.sampled_from((1, 2, 50)))
        else:
            del data[start:]
    return bytes(data)


def json_documents(*documents: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """Return a strategy for documents whose values were replaced, and for their texts with damage."""
    texts = [json.dumps(document).encode() for document in documents]
    values = st.builds(changed, st.sampled_from([dict(document) for document in documents]), changes())
    return st.one_of(values.map(json.dumps).map(str.encode), values.map(json.dumps).map(str.encode), edited(texts))


@st.composite
def yaml_texts(draw: st.DrawFn, documents: Sequence[str]) -> bytes:
    """Return a strategy for YAML files with up to four pieces that are rare there, and with damage.

    Args:
        draw: Draws from strategies.
        documents: Valid files.
    """
    lines = draw(st.sampled_from(documents)).split("\n")
    for _ in range(draw(st.integers(1, 4))):
        place, piece = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(_YAML_PIECES) | st.text(max_size=6))
        key, colon, _ = lines[place].partition(":")
        kind = draw(st.integers(0, 3))
        if kind == 0 and colon:
            lines[place] = f"{key}: {piece}"
        elif kind == 1:
            lines.insert(place, piece)
        elif kind == 2:
            del lines[place]
            lines = lines or [""]
        else:
            lines[place] += piece
    text = "\n".join(lines).encode(errors="surrogatepass")
    return draw(st.just(text) | st.just(text) | edited([text]))
