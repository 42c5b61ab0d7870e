"""What can be told of the units without a service manager: which systemd brought each directive."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edged.errors import ConfigError
from tests.support.repository import ROOT

UNITS = ROOT / "systemd"
OLDEST = 245  # of JetPack 5

# The systemd that brought each directive, by its NEWS; those that it does not name are older than 200.
SINCE = {
    "AmbientCapabilities": 229, "CacheDirectory": 235, "CacheDirectoryMode": 235, "CPUWeight": 232,
    "IOWeight": 230, "IPAddressAllow": 235, "IPAddressDeny": 235, "KeyringMode": 235, "LoadCredential": 247,
    "LockPersonality": 235, "MemoryHigh": 231, "MemoryMax": 231, "NoNewPrivileges": 187, "OOMPolicy": 243,
    "PrivateUsers": 232, "ProtectClock": 245, "ProtectControlGroups": 232, "ProtectHome": 214, "ProtectHostname": 242,
    "ProtectKernelLogs": 244, "ProtectKernelModules": 232, "ProtectKernelTunables": 232, "ProtectProc": 247,
    "ProtectSystem": 214, "RemoveIPC": 232, "RequiresMountsFor": 183, "RestartMaxDelaySec": 254,
    "RestartPreventExitStatus": 189, "RestartSteps": 254, "RestrictAddressFamilies": 211, "RestrictNamespaces": 233,
    "RestrictRealtime": 231, "RestrictSUIDSGID": 242, "RuntimeDirectory": 211, "RuntimeDirectoryMode": 211,
    "StartLimitIntervalSec": 230, "StateDirectory": 235, "StateDirectoryMode": 235, "SystemCallArchitectures": 209,
    "SystemCallErrorNumber": 209, "SystemCallFilter": 187, "TasksMax": 227, "TimeoutAbortSec": 243, "WatchdogSec": 183,
}  # fmt: skip
OLD = {
    "After", "Backlog", "CapabilityBoundingSet", "Description", "DeviceAllow", "DevicePolicy", "Documentation",
    "Environment", "ExecReload", "ExecStart", "Group", "KillMode", "LimitCORE", "LimitNICE", "ListenStream", "NoDelay",
    "NotifyAccess", "PrivateDevices", "PrivateTmp", "Restart", "RestartSec", "SupplementaryGroups",
    "TimeoutStartSec", "TimeoutStopSec", "Type", "UMask", "User", "WantedBy",
}  # fmt: skip
TYPES = {"notify": 0, "notify-reload": 253}


def since(path: Path) -> int:
    """The oldest systemd that knows every directive of a unit or drop-in."""
    lines = [line.strip() for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    versions = [0]
    for name, _, value in (line.partition("=") for line in lines):
        assert name in SINCE or name in OLD, f"{path.name}: say since when systemd knows {name}="
        versions.append(SINCE.get(name, 0))
        if name == "Type":
            versions.append(TYPES[value])
    return max(versions)


@pytest.mark.parametrize("name", ["edged.service", "edged.socket", "dropins/jetson.conf", "dropins/public.conf"])
def test_the_oldest_systemd_supports_every_directive(name: str) -> None:
    assert since(UNITS / name) <= OLDEST


@pytest.mark.parametrize("path", sorted(UNITS.glob("dropins/systemd-*.conf")), ids=lambda path: path.name)
def test_a_drop_in_is_named_after_the_systemd_it_needs(path: Path) -> None:
    assert since(path) == int(re.findall(r"\d+", path.name)[0]) > OLDEST


def test_drop_ins_override_nothing_by_mistake() -> None:
    """What is given twice is meant to be."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNITS / "edged.service")
    for path in UNITS.glob("dropins/*.conf"):
        drop_in = configparser.RawConfigParser(strict=False)
        drop_in.optionxform = str  # type: ignore[assignment,method-assign]
        drop_in.read(path)
        assert drop_in.sections() == ["Service"]
        again = drop_in["Service"].keys() & unit["Service"].keys()
        assert again <= {"DeviceAllow", "IPAddressAllow", "Type", "ExecReload"}, path.name


def test_the_unit_that_pulls_may_write_to_the_drop_folder() -> None:
    pulling = ROOT / "configs/fleet/oci/edged-pull@.service"
    assert directives(pulling, "ReadWritePaths") == ["-/var/lib/edged/drop -/srv/checkpoints"]
    assert r"[Service]\nReadWritePaths=/srv/checkpoints\n" in (ROOT / "docs/fleet.md").read_text()


def test_failures_that_may_pass_are_retried() -> None:
    """A full disk passes; the wrong config stays wrong."""
    unit = UNITS / "edged.service"
    assert (directives(unit, "Restart"), directives(unit, "RestartSec")) == (["on-failure"], ["2"])
    assert directives(unit, "RestartPreventExitStatus") == [str(ConfigError.exit_code)] == ["78"]
    assert directives(unit, "StartLimitIntervalSec") == ["0"]


def test_the_worker_may_confine_itself() -> None:
    """By calls that are in no group of calls that systemd 245 knows."""
    allowed = " ".join(directives(UNITS / "edged.service", "SystemCallFilter")).split()
    assert {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= set(allowed)


def directives(path: Path, name: str) -> list[str]:
    """All values of a directive, in their order."""
    return re.findall(rf"^{name}=(.*)$", path.read_text(), re.MULTILINE)


def test_other_machines_reach_the_service_only_with_public_conf() -> None:
    """What is allowed goes before what is denied, and a later line adds to the earlier ones unless it is empty."""
    unit, public = UNITS / "edged.service", UNITS / "dropins/public.conf"
    assert (directives(unit, "IPAddressDeny"), directives(unit, "IPAddressAllow")) == (["any"], ["localhost"])
    assert (directives(public, "IPAddressDeny"), directives(public, "IPAddressAllow")) == ([], ["any"])
    assert directives(unit, "RestrictAddressFamilies") == ["AF_UNIX AF_INET AF_INET6"]
    makefile = (ROOT / "Makefile").read_text()
    assert "$(HOME_OF)/share systemd/dropins/*.conf" in makefile  # where the documents say that it lies
    for page in ("docs/fleet.md", "configs/edged.yaml"):
        assert "/opt/edged/share/public.conf" in (ROOT / page).read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units_without_remarks(tmp_path: Path) -> None:
    """`verify` exits with 0 even for a directive that it does not know, so what it says counts."""
    program = tmp_path / "bin/edged"
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    for name in ("edged.service", "edged.socket"):
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/opt/edged/bin", str(program.parent)))
    drop_ins = tmp_path / "edged.service.d"
    drop_ins.mkdir()
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    for path in UNITS.glob("dropins/*.conf"):
        if since(path) <= int(version.split()[1]):
            shutil.copy(path, drop_ins)
    units = [tmp_path / "edged.service", tmp_path / "edged.socket"]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    exposure = ["systemd-analyze", "security", "--offline=true", "--threshold=20", UNITS / "edged.service"]
    assert subprocess.run(exposure, capture_output=True).returncode == 0
