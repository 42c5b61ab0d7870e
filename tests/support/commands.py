"""The command line, called in this process."""

from __future__ import annotations

from service.cli import main as cli
from service.cli.parser import parse

DAEMON_COMMANDS = ["run", "check-config", "doctor"]
CLIENT_COMMANDS = [
    "submit",
    "status",
    "history",
    "report",
    "logs",
    "rollback",
    "pin",
    "unpin",
    "pause",
    "resume",
    "retry",
    "cancel",
    "gc",
]
COMMANDS = [
    *DAEMON_COMMANDS,
    *CLIENT_COMMANDS,
    *(
        "inspect",
        "keygen",
        "sign",
        "verify",
        "quantize",
        "export",
        "evaluate",
        "compare",
        "calib",
        "calib add",
        "calib list",
        "calib verify",
        "calib stats",
        "calib purge",
    ),
]


def execute(*arguments: object) -> int:
    """Run a command in this process, also one that computes, and return its exit code."""
    return cli.execute(parse([str(argument) for argument in arguments]))


def call(capsys, *arguments):
    """Run a command and return its exit code, stdout and stderr."""
    try:
        code = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    written = capsys.readouterr()
    return code, written.out, written.err
