"""Convolutions of every kind that edged quantizes."""

from __future__ import annotations

GEOMETRIES = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "groups": g, "padding_mode": mode}
    for k in (1, 3, (3, 1))
    for s in (1, 2)
    for p in (0, 1, "same")
    for d in (1, 2)
    for g in (1, 2, 8)
    for mode in ("zeros", "reflect")
    if not (p == "same" and s == 2)
]
