"""The program `edged`: parse the command line, run the command, turn any error into a message and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from edged.errors import EdgedError, MemoryLimitError, UnavailableError
from service.cli.parser import parse
from service.system.pillow_warnings import ignore_warnings_of_pillow

# How packages are installed whose name does not say it all.
_INSTALL = {
    "torch": "`pip install torch`, on a Jetson the wheel of its JetPack",
    "openvino": "`pip install openvino`",
}
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The command and its arguments; None for those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    if options.command.computes:
        become_computing(given, options)
    return execute(options)


def execute(options: argparse.Namespace, prepare: Callable[[], object] = lambda: None) -> int:
    """Run a parsed command in this process and return its exit code.

    Args:
        options: The command and its options.
        prepare: Called before the command; its errors are reported like those of the command.
    """
    ignore_warnings_of_pillow()
    try:
        prepare()
        code: int = options.command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader stopped early, as in `edged history | head`. Nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EdgedError as error:
        return _fail(options, str(error), error.code, error.exit_code)
    except MemoryError:
        message = "out of memory; free memory, or use fewer images"
        return _fail(options, message, MemoryLimitError.code, MemoryLimitError.exit_code)
    except KeyboardInterrupt:
        return _fail(options, "interrupted", "interrupted", _INTERRUPTED)
    except Exception as error:
        if os.environ.get("EDGED_DEBUG"):
            raise
        if (lack := _what_is_missing(options.name, error)) is not None:
            return _fail(options, lack, UnavailableError.code, UnavailableError.exit_code)
        message = f"unexpected {type(error).__name__}: {error}; please report it, with the output under EDGED_DEBUG=1"
        return _fail(options, message, EdgedError.code, EdgedError.exit_code)
    return code


def become_computing(arguments: Sequence[str], options: argparse.Namespace) -> NoReturn:
    """Replace this process by one that runs the same command with OpenMP's settings in its environment.

    OpenMP reads its settings when it is loaded, so they must be there before. A child instead would be a second
    process and a second peak of memory.
    """
    from service.system.processes import FEW_KERNELS, FEW_SPINS, child_environment

    threads = getattr(options, "threads", None)
    count = threads if threads and threads > 0 else None
    environment = child_environment(count, kernels=FEW_KERNELS, spins=FEW_SPINS)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "service.cli", *arguments], environment)  # noqa: S606 - no shell


def _what_is_missing(command: str, error: Exception) -> str | None:
    """Return which package a command cannot import, and the remedy; None for any other error."""
    if not isinstance(error, ImportError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    if package in ("edged", "service"):
        return None
    if isinstance(error, ModuleNotFoundError):
        fix = _INSTALL.get(package, f"`pip install {package}`")
        return f"`edged {command}` needs {package}, which is not installed here; {fix}"
    reason = " ".join(str(error).split())[:200]
    return f"`edged {command}` needs a package that cannot be imported: {reason}; `edged doctor` says more"


def _fail(options: argparse.Namespace, message: str, code: str, exit_code: int) -> int:
    """Print why a command failed, to stderr and with --json also to stdout; return `exit_code`."""
    if options.json:
        from service.cli.output import print_json

        print_json({"error": message, "code": code})
    sys.stderr.write(f"edged: {message}\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
