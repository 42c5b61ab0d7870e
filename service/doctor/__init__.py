"""`edged doctor`: find what would keep edged from working on this machine, and suggest remedies.

Each check is a function; CHECKS lists them in the order of the output. Checks query the system through a `Machine`.
Nothing is imported that could crash the process: torch and CUDA are probed in child processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edged.errors import AccessError, ConfigError, StateError, UnavailableError
from service.config.load import Config
from service.doctor.accelerator import check_cuda, check_device_nodes
from service.doctor.caches import check_caches
from service.doctor.check import FAIL, OK, WARN, Check, Machine
from service.doctor.configured import check_calibration, check_folders, check_token, read_config
from service.doctor.daemon import check_daemon
from service.doctor.drop_folder import check_drop_folder
from service.doctor.engines import check_engines, check_processor
from service.doctor.packages import check_grpc, check_packages, check_python
from service.doctor.resources import check_clock, check_inotify, check_memory
from service.doctor.sandbox import check_sandbox
from service.doctor.signatures import check_signatures
from service.doctor.system import check_systemd

__all__ = ["CHECKS", "FAIL", "OK", "WARN", "Check", "Machine", "diagnose", "exit_code"]

# Each check takes the machine, and the config or None if it could not be read.
CHECKS: tuple[Callable[[Machine, Config | None], Iterator[Check]], ...] = (
    check_python,
    check_packages,
    check_engines,
    check_processor,
    check_grpc,
    check_cuda,
    check_device_nodes,
    check_memory,
    check_inotify,
    check_clock,
    check_systemd,
    check_sandbox,
    check_folders,
    check_drop_folder,
    check_calibration,
    check_caches,
    check_signatures,
    check_token,
    check_daemon,
)
# Exit codes by priority: the first one among the failed checks is returned.
_PRECEDENCE = tuple(error.exit_code for error in (ConfigError, AccessError, StateError, UnavailableError))


def diagnose(config: str | None = None, machine: Machine | None = None) -> Iterator[Check]:
    """Run all checks one after the other, and yield what each finds.

    Args:
        config: Path of the config file as given by the user; None for the default one.
        machine: Machine to check; None for this one.
    """
    machine = machine or Machine()
    findings, read = read_config(config)
    yield from findings
    for look in CHECKS:
        yield from look(machine, read)


def exit_code(checks: Iterable[Check]) -> int:
    """Return the exit code: 0 without failures, else 78 config, 77 permission, 73 state, 69 unavailable, or 1."""
    codes = {check.exit_code for check in checks if check.level == FAIL}
    return next((code for code in _PRECEDENCE if code in codes), 1 if codes else 0)
