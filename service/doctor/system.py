"""Check of systemd: its version, and the state of edged's unit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from service.config.load import Config
from service.doctor.check import OK, WARN, Check, Machine

_LEAST = 245
# Features that drop-ins of the unit use, by the version that introduced them.
_FEATURES = {247: "LoadCredential", 253: "notify-reload"}


def check_systemd(machine: Machine, _: Config | None) -> Iterator[Check]:
    """Check the version of systemd and the state of edged.service."""
    match = re.match(r"systemd (\d+)", machine.run(["systemctl", "--version"]) or "")
    if match is None:
        yield Check("systemd", OK, "not here: let another supervisor start `edged run`")
        return
    version = int(match[1])
    if version < _LEAST:
        fix = "a newer system (`sudo do-release-upgrade`), or start `edged run` by other means than edged.service"
        yield Check("systemd", WARN, f"{version}; edged.service needs {_LEAST}", fix)
        return
    lacking = [f"{name} ({least})" for least, name in _FEATURES.items() if version < least]
    features = f", without {', '.join(lacking)}" if lacking else ""
    if not machine.path("/run/systemd/system").is_dir():
        yield Check("systemd", OK, f"{version}{features}; not running here, so edged.service does not apply")
        return
    yield Check("systemd", OK, f"{version}{features}")
    yield from _unit(machine)


def _unit(machine: Machine) -> Iterator[Check]:
    shown = machine.run(["systemctl", "show", "edged.service", "-p", "LoadState,ActiveState,UnitFileState"])
    if shown is None:
        return
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if state.get("LoadState") != "loaded":
        yield Check("edged.service", OK, "not installed")
    elif state.get("ActiveState") == "failed":
        fix = "`journalctl -u edged -n 50` says why; then `sudo systemctl restart edged`"
        yield Check("edged.service", WARN, "has failed", fix)
    elif state.get("UnitFileState") == "disabled":
        fix = "`sudo systemctl enable --now edged`"
        yield Check("edged.service", WARN, f"{state.get('ActiveState')}, but not started when the machine starts", fix)
    else:
        yield Check("edged.service", OK, f"{state.get('ActiveState')}, {state.get('UnitFileState')}")
