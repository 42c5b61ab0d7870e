"""What is fuzzed: a kind of input, and the code that reads it; and what one input did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

MAX_LINE = 1000  # characters of a line of an error
MAX_LINES = 110


@dataclass(frozen=True, repr=False)
class Case:
    """The files of one input.

    Attributes:
        files: Contents by path, relative to the folder of the target.
    """

    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        """Return a text that is short even for large files."""
        return f"Case({', '.join(f'{name}: {data[:200]!r} of {len(data)}' for name, data in self.files.items())})"

    def write(self, folder: Path) -> None:
        """Write the files below a folder."""
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: Name of the target, and of its folder in the corpus.
        what: What is damaged, for people.
        cases: Strategy for the inputs. All of them have the same files.
        read: Reads what is in a folder as the product does. It raises one of `refuses`, or nothing.
        refuses: Classes of the errors that are promised for bad input.
        prepare: Writes to a folder what `read` needs besides the files of a case.
    """

    name: str
    what: str
    cases: st.SearchStrategy[Case]
    read: Callable[[Path], None]
    refuses: tuple[type[Exception], ...] = ()
    prepare: Callable[[Path], None] = lambda _: None

    def attempt(self, case: Case, folder: Path) -> str | None:
        """Read a case; return None if it was accepted, otherwise the message of the refusal.

        Args:
            case: The input.
            folder: Folder that `prepare` has filled.

        Raises:
            AssertionError: The message is too long, or has more than printable characters in a line.
            Exception: Whatever else the code raises, which it should not.
        """
        case.write(folder)
        try:
            self.read(folder)
        except self.refuses as error:
            message = str(error)
            lines = message.split("\n")
            assert len(lines) <= MAX_LINES  # noqa: S101 - an assertion of tests
            assert all(line.isprintable() and len(line) <= MAX_LINE for line in lines), ascii(message[:500])  # noqa: S101
            return message
        return None


def many(count: int) -> settings:
    """Return hypothesis' settings for so many inputs: all of them drawn, none shrunk or stored."""
    return settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
