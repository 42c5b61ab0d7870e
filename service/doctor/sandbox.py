"""Check of the sandbox of workers: what of it this machine gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from service.config.load import Config
from service.doctor.check import OK, WARN, Check, Machine
from service.doctor.packages import probe
from service.worker.sandbox import FILES, NETWORK, OFF, PARTS

_NAME = "worker sandbox"
_FIXES = {
    FILES: "a kernel with Landlock (Linux 5.13 and later, CONFIG_SECURITY_LANDLOCK), and `landlock` in its list lsm=",
    NETWORK: "`sudo apt install libseccomp2`, and a kernel with CONFIG_SECCOMP_FILTER",
}


def check_sandbox(_: Machine, config: Config | None) -> Iterator[Check]:
    """Have a process enter the sandbox and try what it has to keep out."""
    if config is not None and config.worker.sandbox == OFF:
        fix = "set worker.sandbox: auto"
        yield Check(_NAME, WARN, "off: a checkpoint that takes its worker over can do all that edged can", fix)
        return
    with tempfile.TemporaryDirectory(prefix="edged-") as folder:
        found = probe("service.doctor.sandbox_probe", folder)
    if not isinstance(found, dict) or found.keys() != set(PARTS):
        yield Check(_NAME, WARN, f"cannot be entered: {found}", "set worker.sandbox: off, if quantizing fails")
        return
    lacking = {part: reason for part, reason in found.items() if reason is not None}
    held = ", ".join(part for part in PARTS if part not in lacking)
    if not lacking:
        yield Check(_NAME, OK, f"{held}: all hold")
        return
    for part, reason in lacking.items():
        fix = _FIXES.get(part, _FIXES[FILES if reason == lacking.get(FILES) else NETWORK])  # others lack one of these
        yield Check(_NAME, WARN, f"{part} not confined: {reason}" + (f"; {held} hold" if held else ""), fix)
