"""Build commands.md, the reference of the command line: `python docs/commands.py`.

Everything is read from the parser in service/cli/parser.py. Run this file after a change of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from service.cli.parser import COMMANDS, build_parser

PAGE = Path(__file__).with_name("commands.md")

INTRODUCTION = """\
<!-- Built by docs/commands.py from the parser; run it after a change of it. -->

# Commands

`edged COMMAND --help` shows the same. Commands find the daemon through its UNIX socket: `--socket`, `--config`,
`$EDGED_SOCKET`, `$EDGED_CONFIG`, /etc/edged/edged.yaml, in this order. On a device they run as root or as the user
edged: `sudo /opt/edged/bin/edged status`. With `--json` a command prints one JSON object.

| exit code | |
|---|---|
| 0 | ok |
| 1 | a fault of edged or of the device |
| 2 | usage: an option or a name is wrong |
| 3 | rejected: the file is at fault, or a gate was not passed |
| 4 | not ready |
| 5 | rolled back |
| 69 | unavailable: no daemon answers, or the address is in use, or CUDA is configured and missing |
| 73 | state cannot be written |
| 75 | deferred: tried again later |
| 77 | permission |
| 78 | config |

`edged doctor` exits with 0 (no errors), 78 (config), 77 (permission), 73 (state cannot be written), 69 (address in use,
or CUDA configured but missing) or 1.
"""


def text() -> str:
    """Return the page."""
    subparsers = next(
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)  # argparse has no other access
    )
    return "\n".join([INTRODUCTION, *overview(), *(line for name in COMMANDS for line in command(name, subparsers))])


def overview() -> Iterator[str]:
    """Yield a table of all commands."""
    yield "| command | |\n|---|---|"
    for name, each in COMMANDS.items():
        yield f"| [`edged {name}`](#edged-{name.replace(' ', '-')}) | {each.summary} |"
    yield ""


def command(name: str, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[str]:
    """Yield the section of one command."""
    each, parser = COMMANDS[name], subparsers.choices[name]
    yield f"## edged {name}\n"
    yield f"{each.summary[0].upper()}{each.summary[1:]}.\n"
    yield f"    {each.example}\n"
    if each.notes:
        yield f"{each.notes}\n"
    rows = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    if rows:
        yield "| option | |\n|---|---|"
    for action in rows:
        meaning = (action.help or "").replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
        yield f"| `{spelling(action)}` | {meaning} |"
    yield ""


def spelling(action: argparse.Action) -> str:
    """Return how an option or an argument is written on the command line."""
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest)
    shown = str(value[0] if isinstance(value, tuple) else value).replace("|", "\\|")
    if not action.option_strings:
        return f"[{shown}]" if action.nargs in ("?", "*") else shown
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {shown}"


if __name__ == "__main__":
    PAGE.write_text(text())
