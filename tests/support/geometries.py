"""Convolutions of every kind that edged quantizes, and small maps."""

from __future__ import annotations

from hypothesis import strategies as st

# What a property test of maps [images, channels, height, width] draws, and a seed of their values.
SMALL_MAPS = {
    "channels": st.integers(1, 5),
    "height": st.integers(1, 8),
    "width": st.integers(1, 8),
    "images": st.integers(1, 3),
    "seed": st.integers(0, 1000),
}
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
