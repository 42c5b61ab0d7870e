from __future__ import annotations

from pathlib import Path

import pytest

from edged.execution.processor import processor_flags, processor_saturates


@pytest.mark.parametrize(
    ("flags", "machine", "saturates"),
    [
        ("fpu sse4_1 avx avx2 fma", "x86_64", True),
        ("fpu avx2 avx512f avx512bw avx512vl", "x86_64", True),
        ("fpu avx2 avx512f avx512_vnni", "x86_64", False),
        ("fpu avx2 avx_vnni", "AMD64", False),
        ("fpu avx2 avx512_vnni_like", "x86_64", True),
        (None, "x86_64", True),
        (None, "aarch64", False),
        ("fp asimd asimddp", "aarch64", False),
    ],
)
def test_processors_without_vnni_saturate(tmp_path: Path, flags: str | None, machine: str, saturates: bool) -> None:
    if flags is not None:
        (tmp_path / "proc").mkdir()
        text = "".join(f"processor\t: {core}\nflags\t\t: {flags}\nbogomips\t: 1\n\n" for core in range(2))
        (tmp_path / "proc/cpuinfo").write_text(text)
        assert processor_flags(tmp_path) == set(flags.split())
    assert processor_saturates(tmp_path, machine) is saturates
