"""Check a pickle before it is read: names, opcodes, counts and sizes. No object is built.

`edged.models.inert_pickle` runs nothing that a pickle names, but reading one still allocates and hashes whatever it
asks for. So a pickle passes only if it consists of what `torch.save` writes in protocols 2 to 5, within bounds. The
scan turns it into one symbol per instruction and keeps no stack.
"""

from __future__ import annotations

import math
import pickletools
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError

# A ResNet-152 takes 0.15 MB and 30,000 steps, a YOLOv5x 100,000; with an optimizer's state about three times that.
MAX_PICKLE_BYTES = 16 << 20
MAX_PICKLE_STEPS = 1_000_000
MAX_NAMES = 2_000  # each becomes a class
MAX_PATHS = 1 << 14  # to one tuple, over all others that share it
MAX_TUPLES = 20_000  # of more than plain values; as a dict's key, 150,000 in each other overflow the stack of the hash

PROTOCOLS = range(2, 6)

# All that torch.save writes, except the memo's instructions. An object from the memo is "o", a string from it "m".
_SYMBOLS: Mapping[str, str] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4"), "i"),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"), "x"),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), "B"),
    **dict.fromkeys(("BINFLOAT", "NEWTRUE", "NEWFALSE"), "v"),
    **dict(zip(("PROTO", "STOP", "MARK", "NONE", "GLOBAL", "STACK_GLOBAL", "BINPERSID"), "^.(nccQ", strict=True)),
    **dict(zip(("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"), "[ae{su", strict=True)),
    **dict(zip(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"), ")123t", strict=True)),
    **dict(zip(("EMPTY_SET", "ADDITEMS", "FROZENSET"), "SAf", strict=True)),
    **dict(zip(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"), "RNNb", strict=True)),
}
_KEPT = {"x": "m", "m": "m", "c": "c"}
_PLAIN = "[ivxmBn]"
# A tuple of plain values only: it holds nothing that a hash could follow.
_PLAIN_TUPLE = rf"\)|{_PLAIN}1|{_PLAIN}{{2}}2|{_PLAIN}{{3}}3|\({_PLAIN}*t"
_ENDS_PLAIN = re.compile(rf"({_PLAIN_TUPLE})$")
_LOOK_BACK = 16
# Tuples that may be nested: not of plain values, and not the arguments of a call, a storage or a state.
_NESTED_TUPLE = re.compile(r"[123t](?![RQNb])")
_SHARED = frozenset("123tf")
# Calls that copy their argument: it must be written out on the spot, so that all copies are as long as the pickle.
_FIRST_ARGUMENT: Mapping[str, str] = {
    "collections.OrderedDict": ")[",
    "collections.Counter": "){",
    "builtins.set": ")[",
    "__builtin__.set": ")[",
    "builtins.frozenset": ")[",
    "__builtin__.frozenset": ")[",
    "_codecs.encode": "x",
    "torch.Size": ")i",
}

# fmt: off
# Functions that run code, open files or start programs. None of them would run here, but a file that names one was
# built to harm users who load it in another way. It is rejected with the name.
_RUNS_CODE = frozenset(
    [
        "os", "posix", "nt", "posixpath", "ntpath", "subprocess", "sys", "importlib", "runpy", "code", "codeop",
        "pty", "commands", "popen2", "socket", "shutil", "ctypes", "pickle", "_pickle", "cPickle", "marshal",
        "shelve", "dill", "cloudpickle", "joblib", "operator", "_operator", "webbrowser", "pip", "timeit",
        "cProfile", "profile", "pdb", "bdb", "trace", "asyncio", "multiprocessing", "threading", "_thread", "signal",
        "tempfile", "io", "_io", "codecs", "builtins", "__builtin__", "pkgutil", "zipimport", "imp", "nturl2path",
        "urllib", "http", "ftplib", "smtplib", "linecache", "inspect", "gc", "weakref", "ast", "torch.hub",
        "torch.serialization", "torch.jit", "torch.package", "torch.utils.cpp_extension",
        "torch.distributed.rpc", "numpy.testing", "numpy.f2py", "numpy.distutils", "numpy.lib.npyio", "setuptools",
        "distutils", "idlelib", "pydoc", "doctest", "ensurepip", "venv", "site", "lib2to3", "cgi", "cgitb",
        "imaplib", "poplib", "nntplib", "telnetlib", "xmlrpc", "sqlite3", "_pyrepl", "_aix_support", "_osx_support",
        "requests", "paramiko", "cffi", "numexpr", "torch._inductor", "torch.utils.bottleneck",
        "torch.utils.collect_env", "torch.utils._config_module", "torch.fx.experimental.symbolic_shapes",
        "torch.ops", "torch._ops", "torch._classes", "torch.classes", "torch.distributed.launcher", "tensorflow",
    ]
)
_RUNS_CODE_NAMES = frozenset(
    {
        "torch.load", "torch.save", "torch.compile", "torch.storage._load_from_bytes", "numpy.load", "numpy.fromfile",
        "functools.reduce", "types.FunctionType", "types.CodeType", "uuid._get_command_stdout", "platform.popen",
        "logging.config.listen", "tokenize.open", "fileinput.input", "pandas.eval", "pandas.read_pickle",
        "sympy.sympify", "hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method",
    }
)
_PLAIN_BUILTINS = frozenset(
    [
        "dict", "list", "int", "float", "bool", "bytes", "bytearray", "set", "frozenset", "tuple", "complex", "str",
        "slice", "range", "object", "long", "unicode", "xrange", "Exception", "ValueError", "KeyError",
        "RuntimeError", "Ellipsis", "NotImplemented",
    ]
)
# fmt: on
# Python 3.11.0 to 3.11.3 write a member of an enum as getattr(Class, "NAME"). In this one spelling it only looks a
# member up, and nothing can be made of the result.
_LOOKUPS = frozenset({"builtins.getattr", "__builtin__.getattr"})
_LOOKUP = re.compile(r"c(?:[xm]{2})?c[xm]2R(?!\)N)")
_PLAIN_TYPES = frozenset({"signal.Signals", "signal.Handlers", "threading.Thread", "io.BytesIO", "weakref.WeakSet"}) | {
    "multiprocessing.context.BaseContext"
}


@dataclass(frozen=True)
class _Spelling:
    """A pickle without its memo: a symbol and an argument for each instruction."""

    symbols: str
    arguments: list[Any]


def scan_pickle(stream: IO[bytes]) -> None:
    """Check one pickle and leave the stream behind it.

    Args:
        stream: Stream at the start of the pickle. The caller bounds it to `MAX_PICKLE_BYTES`.

    Raises:
        UnsafeCheckpointError: The pickle names a function that runs code, or is built to exhaust the machine.
        TooLargeError: The pickle has more than `MAX_PICKLE_STEPS` steps, `MAX_TUPLES` tuples or `MAX_NAMES` names.
        CheckpointError: The pickle is malformed, truncated, or in a protocol that torch.save does not write.
    """
    start = stream.tell()
    if stream.read(1) not in (b"\x80", b""):
        raise CheckpointError("it is in pickle protocol 0 or 1; save it with torch.save's own, which is 2")
    stream.seek(start)
    spelling = _spell(stream)
    if "^" in spelling.symbols[1:]:
        raise UnsafeCheckpointError("its pickle uses PROTO twice, which torch.save never writes")
    _check_calls(spelling)
    if len(_NESTED_TUPLE.findall(re.sub(_PLAIN_TUPLE, "", spelling.symbols))) > MAX_TUPLES:
        raise TooLargeError(f"its pickle has over {MAX_TUPLES} tuples; save only model.state_dict()")


def quoted(text: object, limit: int = 80) -> str:
    """Return `text` on one line, in quotes, cut to `limit` characters; safe for logs with any content."""
    # Only the type of a container is named: the text of a list from a small pickle can be astronomically long.
    if isinstance(text, int) and not isinstance(text, bool) and text.bit_length() > 256:
        return f"'a number of {text.bit_length()} bits'"  # Python refuses to write out the largest ones
    whole = str(text) if isinstance(text, str | int | float | Exception | None) else f"a {type(text).__name__}"
    return ascii(whole if len(whole) <= limit else whole[: limit - 3] + "...")


def _spell(stream: IO[bytes]) -> _Spelling:
    symbols: list[str] = []
    arguments: list[Any] = []
    memo: dict[Any, tuple[str, Any]] = {}
    shared: Counter[Any] = Counter()
    names: set[str] = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pickletools: backslashes in a damaged name
            for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if step >= MAX_PICKLE_STEPS:
                    raise TooLargeError(f"its pickle takes over {MAX_PICKLE_STEPS} steps; save only model.state_dict()")
                if opcode.name == "FRAME":
                    continue
                if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                    _memorize(memo, len(memo) if opcode.name == "MEMOIZE" else argument, symbols, arguments)
                    continue
                if opcode.name in ("BINGET", "LONG_BINGET"):
                    symbol, value = memo[argument]
                    shared[argument] += symbol == "T"
                    symbol = "o" if symbol == "T" else symbol
                else:
                    symbol, value = _checked(opcode.name, argument, arguments)
                    if symbol == "c":
                        names.add(value)
                symbols.append(symbol)
                arguments.append(value)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"its pickle is damaged or cut off ({quoted(error)})") from None
    if len(names) > MAX_NAMES:
        raise TooLargeError(f"its pickle names over {MAX_NAMES} classes; save only model.state_dict()")
    if sum(math.log2(1 + count) for count in shared.values()) > math.log2(MAX_PATHS):
        raise UnsafeCheckpointError("its pickle nests shared tuples, which grow without bound; save only the tensors")
    return _Spelling("".join(symbols), arguments)


def _memorize(memo: dict[Any, tuple[str, Any]], key: Any, symbols: list[str], arguments: list[Any]) -> None:
    """Remember the last object: as a string, a name, a tuple that a hash would follow ("T"), or any other ("o")."""
    if key in memo or key > MAX_PICKLE_STEPS or symbols[-1] == "Q":
        raise UnsafeCheckpointError("its pickle uses the memo in a way that torch.save does not")
    kind = _KEPT.get(symbols[-1], "o")
    if symbols[-1] in _SHARED and not _ENDS_PLAIN.search("".join(symbols[-_LOOK_BACK:])):
        kind = "T"
    memo[key] = kind, arguments[-1]


def _checked(opcode: str, argument: Any, before: list[Any]) -> tuple[str, Any]:
    """Check that an instruction may occur, and return its symbol and argument."""
    if opcode == "PROTO" and argument not in PROTOCOLS:
        raise CheckpointError(f"it is in pickle protocol {argument}; save it with torch.save's own, which is 2")
    if opcode not in _SYMBOLS:
        raise UnsafeCheckpointError(f"its pickle uses {opcode}, which torch.save never writes")
    if opcode == "GLOBAL":
        argument = argument.replace(" ", ".", 1)
    elif opcode == "STACK_GLOBAL":
        module, name = before[-2:]
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnsafeCheckpointError("its pickle names a class in a way that torch.save does not write")
        argument = f"{module}.{name}"
    if _SYMBOLS[opcode] == "c":
        _check_name(argument)
    return _SYMBOLS[opcode], argument


def _check_name(name: str) -> None:
    root, _, rest = name.partition(".")
    if name in _LOOKUPS or (root in ("builtins", "__builtin__") and rest in _PLAIN_BUILTINS):
        return  # `_check_calls` checks how a lookup is used
    prefixes = {".".join(name.split(".")[: depth + 1]) for depth in range(name.count("."))}
    if (prefixes & _RUNS_CODE and name not in _PLAIN_TYPES) or name in _RUNS_CODE_NAMES:
        raise _runs_code(name)


def _runs_code(name: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"it names {quoted(name)}, which can run code; edged never loads such a file: save model.state_dict()"
    )


def _is_lookup(spelling: _Spelling, start: int) -> bool:
    """Return whether the name at `start` is called with a class and the public name of a member, on the spot."""
    match = _LOOKUP.match(spelling.symbols, start)
    if match is None:
        return False
    kind, member = spelling.arguments[match.end() - 4], spelling.arguments[match.end() - 3]
    return kind not in _LOOKUPS and member.isidentifier() and not member.startswith("_")


def _check_calls(spelling: _Spelling) -> None:
    for match in re.finditer(r"c(?=\(*([^(]))", spelling.symbols):
        name, first = spelling.arguments[match.start()], match[1]
        if name in _LOOKUPS and not _is_lookup(spelling, match.start()):
            raise _runs_code(name)
        if first not in _FIRST_ARGUMENT.get(name, first) + "123t":  # 123t: in a tuple, it can only be passed on
            raise UnsafeCheckpointError(f"its pickle calls {quoted(name)} in a way that torch.save does not write")
