"""The blocks that a YOLOv5 yaml may use, and the arguments that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edged.errors import ArchitectureError
from edged.models.pickle_scan import quoted

Argument = int | float | bool | str | None | tuple[int, ...]
Test = Callable[[Any], bool]

MAX_CHANNELS, MAX_KERNEL, MAX_STEP = 1 << 14, 63, 32
MAX_POOLS = 8
# Strings that stand for values: YOLOv5 evaluates them, and its yaml files write None in this way.
_WORDS: Mapping[str, Any] = {"None": None, "True": True, "False": False}


def _whole(low: int, high: int) -> Test:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(*values: object) -> Test:
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _anything(_: Any) -> bool:
    return True


def _expansion(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 4


def _pools(value: Any) -> bool:
    return isinstance(value, tuple) and 0 < len(value) <= MAX_POOLS and all(map(_kernel, value))


_channels, _kernel, _step = _whole(1, MAX_CHANNELS), _whole(1, MAX_KERNEL), _whole(1, MAX_STEP)
_flag = _one_of(True, False)


def _padding(value: Any) -> bool:
    return value is None or _whole(0, MAX_KERNEL)(value)


_CONV: Mapping[str, Test] = {
    "channels": _channels,
    "kernel": _kernel,
    "stride": _step,
    "padding": _padding,
    "groups": _channels,
}
_CSP: Mapping[str, Test] = {"channels": _channels, "shortcut": _flag, "groups": _channels, "expansion": _expansion}

# Block -> its arguments in order, each with its allowed values.
BLOCKS: Mapping[str, Mapping[str, Test]] = {
    "Conv": _CONV,
    "Bottleneck": _CSP,
    "C3": _CSP,
    "SPP": {"channels": _channels, "kernels": _pools},
    "SPPF": {"channels": _channels, "kernel": _kernel},
    "Focus": _CONV,
    "nn.Upsample": {"size": _one_of(None), "scale": _step, "mode": _one_of("nearest")},
    "Concat": {"dimension": _one_of(1)},
    "Detect": {"classes": _anything, "anchors": _anything},
}
_REQUIRED: Mapping[str, int] = {"nn.Upsample": 3, "Detect": 0, "Concat": 0}  # of the others, the channels


def checked_arguments(index: int, block: str, value: object) -> tuple[Argument, ...]:
    """Check and return the arguments of a row's block; those of Detect are dropped, since its tensors determine them.

    Args:
        index: Number of the row, for messages.
        block: Name of the block, a key of `BLOCKS`.
        value: Arguments as read from the yaml.

    Raises:
        ArchitectureError: There are too few or too many arguments, or one has an impossible value.
    """
    if not isinstance(value, list):
        raise ArchitectureError(f"row {index} of the yaml gives {block} a {type(value).__name__}, not a list")
    tests = BLOCKS[block]
    if not _REQUIRED.get(block, 1) <= len(value) <= len(tests):
        raise ArchitectureError(
            f"row {index} of the yaml gives {block} {len(value)} arguments; it takes {', '.join(tests)}"
        )
    if block == "Detect":
        return ()
    arguments = tuple(_plain(argument) for argument in value)
    for (name, test), argument in zip(tests.items(), arguments, strict=False):
        if not test(argument):
            raise ArchitectureError(f"row {index} of the yaml gives {block} {name} {quoted(argument)}, which cannot be")
    return arguments


def _plain(argument: Any) -> Argument:
    if isinstance(argument, list):
        return tuple(argument)
    if isinstance(argument, str):
        return _WORDS.get(argument, argument)  # type: ignore[no-any-return]  # its values are of the kind
    return argument  # type: ignore[no-any-return]  # the caller tests it
