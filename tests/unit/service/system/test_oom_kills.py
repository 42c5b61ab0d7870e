from __future__ import annotations

from pathlib import Path

import pytest

from service.system.oom_kills import OomKills


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root folder with /proc/self/cgroup and other files."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "sys/fs/cgroup/memory/a/memory.oom_control"
V2 = "sys/fs/cgroup/e/memory.events"


@pytest.mark.parametrize(
    ("cgroup", "files", "kills"),
    [
        ("0::/e\n", {V2: "low 0\nhigh 7\noom 3\noom_kill 2\noom_group_kill 1\n"}, OomKills(2, None)),
        ("4:memory:/a\n0::/\n", {V1: "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"}, OomKills(5, None)),
        ("0::/e\n", {"proc/vmstat": "pgfault 9\noom_kill 11\n"}, OomKills(None, 11)),
        ("4:memory:/a\n", {V1: "oom_kill_disable 0\nunder_oom 0\n"}, OomKills(None, None)),
        ("0::/e\n", {V2: "oom_kill many\n"}, OomKills(None, None)),
        ("", {}, OomKills(None, None)),
    ],
)
def test_the_counters_of_both_versions_of_control_groups(
    tmp_path: Path, cgroup: str, files: dict[str, str], kills: OomKills
) -> None:
    assert OomKills.read(machine(tmp_path, cgroup, files)) == kills


def test_what_was_added_since() -> None:
    assert OomKills(3, 9).since(OomKills(1, 9)) == OomKills(2, 0)
    assert OomKills(3, None).since(OomKills(None, 9)) == OomKills(None, None)
    assert OomKills(0, 9).since(OomKills(4, 9)).group == 0  # the group was made anew


def test_this_machine_can_be_read() -> None:
    now = OomKills.read()
    assert all(count is None or count >= 0 for count in (now.group, now.machine))
