"""Memory left by control groups, with made-up trees; in a real group: tests/end_to_end/test_swaps.py."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from service.system.free_memory import available_bytes

MIB = 1 << 20
NO_LIMIT = 9223372036854771712  # value of version 1 for no limit


def machine(root: Path, cgroup: str, groups: dict[str, dict[str, int | str]]) -> Path:
    """/proc/self/cgroup, and groups by path with their files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, files in groups.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in files.items():
            (folder / file).write_text(f"{value}\n")
    return root


def v1(limit: int, usage: int, cold: int = 0) -> dict[str, int | str]:
    stat = f"cache 5\ninactive_file 1\ntotal_inactive_file {cold}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": stat}


def v2(most: int | str, usage: int, cold: int = 0, high: int | str = "max") -> dict[str, int | str]:
    stat = f"anon 5\ninactive_file {cold}"
    return {"memory.max": most, "memory.high": high, "memory.current": usage, "memory.stat": stat}


@pytest.mark.parametrize(
    ("cgroup", "groups", "left"),
    [
        ("4:memory:/a/b\n", {"memory/a/b": v1(100 * MIB, 30 * MIB), "memory/a": v1(NO_LIMIT, 50 * MIB)}, 70 * MIB),
        ("4:memory:/a/b\n", {"memory/a/b": v1(100 * MIB, 30 * MIB), "memory/a": v1(80 * MIB, 50 * MIB)}, 30 * MIB),
        ("4:memory:/a\n0::/\n", {"memory/a": v1(100 * MIB, 90 * MIB, cold=20 * MIB)}, 30 * MIB),
        ("4:cpu,memory:/a\n", {"memory/a": v1(10 * MIB, 12 * MIB)}, 0),
        ("0::/sys.slice/edged.service\n", {"sys.slice/edged.service": v2(90 * MIB, 80 * MIB, 5 * MIB)}, 15 * MIB),
        ("0::/e\n", {"e": v2("max", 80 * MIB, high=100 * MIB)}, 20 * MIB),
        ("0::/e/f\n", {"e": v2(100 * MIB, 60 * MIB), "e/f": v2("max", 50 * MIB)}, 40 * MIB),
        # A container without its own cgroup namespace: the path is that of the host, and the mount point is its group.
        ("4:memory:/docker/abc\n", {"memory": v1(64 * MIB, 4 * MIB)}, 60 * MIB),
    ],
)
def test_the_group_with_the_least_memory_left_counts(
    tmp_path: Path, cgroup: str, groups: dict[str, dict[str, int | str]], left: int
) -> None:
    assert available_bytes(machine(tmp_path, cgroup, groups)) == left


@pytest.mark.parametrize(
    ("cgroup", "groups"),
    [
        ("", {}),
        ("1:name=systemd:/x\n", {}),
        ("0::/e\n", {"e": v2("max", 80 * MIB)}),
        ("4:memory:/a\n", {"memory/a": v1(NO_LIMIT, 80 * MIB)}),
        ("4:memory:/a\n", {"memory/a": {"memory.limit_in_bytes": 5}}),
    ],
)
def test_without_a_limit_the_machines_memory_counts(
    tmp_path: Path, cgroup: str, groups: dict[str, dict[str, int | str]]
) -> None:
    found = available_bytes(machine(tmp_path, cgroup, groups))
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.5)


def test_this_process_has_memory_available() -> None:
    assert 0 <= available_bytes() <= psutil.virtual_memory().total
