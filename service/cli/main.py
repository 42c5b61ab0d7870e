"""The command `edged`. Only what a command needs is imported: `edged status` has 50 ms."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from edged.errors import EdgedError, UsageError
from service.cli.parser import fail

_OFFLINE = {
    "quantize": "quantize a checkpoint into an artifact folder, without a daemon",
    "evaluate": "measure a checkpoint or an artifact on labelled images",
    "calib": "say what is in a folder of calibration images; add|list|verify|stats|purge those of a model",
}
_ADMINISTRATION = {
    "rollback": "put the generation before back in service",
    "pin": "let no other generation of a model go live",
    "unpin": "let other generations go live again",
    "pause": "leave what is dropped in the drop folder",
    "resume": "take what was dropped meanwhile",
}
_EXIT_CODES = """\
exit codes:
  0 ok; 1 fault; 2 usage; 3 rejected; 4 not ready; 5 rolled back; 69 unavailable; 73 cannot write state;
  75 deferred; 77 permission; 78 config
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in _OFFLINE:
        become_offline(given)
    options = _parser().parse_args(given)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except EdgedError as error:
        return fail(options.json, str(error), error.code, error.exit_code)
    except KeyboardInterrupt:
        return fail(options.json, "interrupted", "interrupted", 130)
    except BrokenPipeError:  # `edged history | head`: nobody reads on; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        if os.environ.get("EDGED_DEBUG"):
            raise
        message = f"unexpected {type(error).__name__}: {error}; please report it, with the output under EDGED_DEBUG=1"
        return fail(options.json, message, EdgedError.code, EdgedError.exit_code)
    return code


def become_offline(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by `python -m service.cli.offline`, with OpenMP's settings in its environment.

    They are read when OpenMP is loaded, so they must be there before; and one process less is one peak less.
    """
    from service.system.processes import FEW_KERNELS, child_environment

    environment = child_environment(_threads(arguments), kernels=FEW_KERNELS)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "service.cli.offline", *arguments], environment)  # noqa: S606 - no shell


def _threads(arguments: Sequence[str]) -> int | None:
    """The value of --threads; whether it makes sense is told by the command itself."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--threads":
            value = value if equals else "".join(arguments[index + 1 : index + 2])
            return int(value) if value.isdecimal() and int(value) > 0 else None
    return None


class _Parser(argparse.ArgumentParser):
    """One line and exit code 2 for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read on."""
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
    """--version, which looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print and leave."""
        from importlib.metadata import version

        sys.stdout.write(f"edged {version('edged')}\n")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="edged",
        description="Turns a checkpoint dropped on an edge box into a quantized model in service.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_daemon_commands(commands)
    _add_client_commands(commands)
    for name, text in _OFFLINE.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _add_daemon_commands(commands: Any) -> None:
    run = _command(commands, "run", _run, "run the daemon", "edged run --config /etc/edged/edged.yaml")
    check = _command(
        commands, "check-config", _check_config, "check a config file", "edged check-config --config edged.yaml --json"
    )
    doctor = _command(
        commands, "doctor", _doctor, "look for what would keep edged from working here", "edged doctor --json"
    )
    for command in (run, check, doctor):
        _add_config(command)
    for command in (check, doctor):
        _add_json(command)


def _add_client_commands(commands: Any) -> None:
    submit = _command(
        commands,
        "submit",
        _submit,
        "put a checkpoint into the drop folder",
        "edged submit resnet18.pth --model classifier --wait",
    )
    submit.add_argument("file", metavar="FILE")
    submit.add_argument("--model", required=True, metavar="NAME", help="for which model")
    submit.add_argument("--wait", action="store_true", help="until it is live, rejected or put off; see the exit code")
    submit.add_argument("--until-end", action="store_true", help="with --wait: go on waiting while it is put off")
    submit.add_argument("--timeout", type=float, metavar="SECONDS", help="with --wait: exit code 4 after this time")
    status = _command(commands, "status", _status, "what is live and what is on its way", "edged status --json")
    status.add_argument("model", nargs="?", metavar="MODEL", help="exit code 4 if this model is not in service")
    history = _command(commands, "history", _history, "what became of dropped files", "edged history classifier")
    history.add_argument("model", nargs="?", metavar="MODEL", help="of one model, with its generations; default: all")
    report = _command(commands, "report", _report, "what one update did, and how it went", "edged report 7 --open")
    report.add_argument("update", metavar="UPDATE", help="its number, or a model's name for that model's latest")
    report.add_argument("--output", metavar="FILE", help="write the page there, one file with all in it")
    report.add_argument("--open", action="store_true", help="show the page in a browser")
    administration = [
        _command(commands, name, _administer, text, f"edged {name} classifier")
        for name, text in _ADMINISTRATION.items()
    ]
    for command in administration:
        command.add_argument("model", metavar="MODEL")
    gc = _command(commands, "gc", _gc, "remove what nobody needs any more", "edged gc --dry-run")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for command in (submit, status, history, report, *administration, gc):
        command.add_argument("--socket", metavar="PATH", help="of the daemon; default: $EDGED_SOCKET, or by the config")
        _add_config(command)
        _add_json(command)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, command=name, json=False)
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    text = "config file; default: $EDGED_CONFIG, then /etc/edged/edged.yaml"
    command.add_argument("--config", metavar="FILE", help=text)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _run(options: argparse.Namespace) -> int:
    from service.app import run
    from service.config.locate import find_config

    return run(find_config(options.config))


def _check_config(options: argparse.Namespace) -> int:
    from service.cli.commands import check_config

    return check_config(options)


def _doctor(options: argparse.Namespace) -> int:
    from service.cli.commands import doctor

    return doctor(options)


def _submit(options: argparse.Namespace) -> int:
    from service.cli.commands import submit

    return submit(options)


def _status(options: argparse.Namespace) -> int:
    from service.cli.commands import status

    return status(options)


def _history(options: argparse.Namespace) -> int:
    from service.cli.commands import history

    return history(options)


def _report(options: argparse.Namespace) -> int:
    from service.cli.report import report

    return report(options)


def _administer(options: argparse.Namespace) -> int:
    from service.cli.commands import administer

    return administer(options)


def _gc(options: argparse.Namespace) -> int:
    from service.cli.commands import collect_garbage

    return collect_garbage(options)


if __name__ == "__main__":
    sys.exit(main())
