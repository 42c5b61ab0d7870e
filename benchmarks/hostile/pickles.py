"""Hostile pickles: functions that run code, impossible tensors, bombs, and instructions of no torch.save."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping

from benchmarks.hostile.spelling import PROTO, Spelled, call, encoded, integer, state_dict, storage, tensor, text

ONE = tensor(0, (1,), (1,))

# Tensors that cannot be, of a storage of four values.
GEOMETRIES: Mapping[str, bytes] = {
    "a size below zero": tensor(0, (-4,), (1,)),
    "a stride below zero": tensor(3, (4,), (-1,)),
    "an offset below zero": tensor(-1, (1,), (1,)),
    "an offset beyond the end": tensor(5, (1,), (1,)),
    "a huge offset": tensor(1 << 62, (1,), (1,)),
    "an offset of 4,000 bits": tensor(1 << 4000, (1,), (1,)),
    "sizes whose product overflows": tensor(0, (1 << 32, 1 << 32), (1, 1)),
    "strides that overlap": tensor(0, (4, 4), (1, 0)),
    "strides of nothing": tensor(0, (1 << 40,), (0,)),
    "more strides than sizes": tensor(0, (2,), (1, 1)),
    "100 dimensions": tensor(0, (1,) * 100, (1,) * 100),
    "a storage of negative size": tensor(0, (1,), (1,), storage(numel=-1)),
    "a storage of 2 ** 60 values": tensor(0, (1,), (1,), storage(numel=1 << 60)),
    "a storage that is not there": tensor(0, (1,), (1,), storage("7")),
    "a storage with a path as its key": tensor(0, (1,), (1,), storage("../../etc/passwd")),
    "a storage with a key of 1 MB": tensor(0, (1,), (1,), storage("9" * 1_000_000)),
    "a storage of an unknown class": tensor(0, (1,), (1,), storage(kind=b"cevil\nStorage\n")),
    "a storage that is no storage": tensor(0, (1,), (1,), integer(3)),
    "a tensor as storage": tensor(0, (1,), (1,), tensor(0, (1,), (1,))),
}

_GADGETS = """
    os.system posix.system nt.system subprocess.Popen subprocess.check_output builtins.eval builtins.exec
    builtins.getattr builtins.__import__ builtins.compile builtins.open __builtin__.execfile
    __builtin__.apply importlib.import_module runpy.run_path code.InteractiveInterpreter pty.spawn
    socket.create_connection shutil.rmtree ctypes.CDLL pickle.loads _pickle.loads marshal.loads dill.loads
    cloudpickle.loads joblib.load operator.methodcaller _operator.attrgetter webbrowser.open pip.main
    timeit.timeit cProfile.run profile.run pdb.run bdb.Bdb.run trace.Trace.run
    asyncio.create_subprocess_shell multiprocessing.Process signal.alarm tempfile.mkstemp codecs.open
    pkgutil.resolve_name pydoc.pipepager pydoc.locate doctest.debug_script ensurepip._run_pip venv.create
    site.main lib2to3.pgen2.pgen.generate_grammar idlelib.pyshell.ModifiedInterpreter imaplib.IMAP4_stream
    telnetlib.Telnet cgitb.lookup uuid._get_command_stdout _pyrepl.pager.pipe_pager
    _aix_support._read_cmd_output _osx_support._read_output platform.popen logging.config.listen requests.get
    urllib.request.urlopen http.client.HTTPSConnection smtplib.SMTP sqlite3.connect torch.load torch.hub.load
    torch.jit.load torch.serialization.load torch.storage._load_from_bytes torch.utils.cpp_extension.load
    torch.utils.collect_env.run torch.utils.bottleneck.__main__.run_cprofile
    torch._inductor.codecache.compile_file torch.jit.unsupported_tensor_ops.execWrapper
    torch.utils._config_module.load_config torch.distributed.rpc.rpc_sync torch.ops.load_library
    torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression torch.package.PackageImporter
    numpy.load numpy.fromfile numpy.testing._private.utils.runstring numpy.f2py.crackfortran.myeval
    numpy.f2py.diagnose.run_command numexpr.evaluate sympy.sympify pandas.eval pandas.read_pickle
    hydra.utils.instantiate types.FunctionType types.CodeType functools.reduce cffi.FFI
"""
GADGETS = tuple(_GADGETS.split())


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    """Return a pickle of containers in each other."""
    return PROTO + b"}(" + text("a") + opening * depth + closing * depth + text("w") + tensor(0, (1,), (1,)) + b"u."


def repeated(count: int, entry: Callable[[int], tuple[str, bytes]]) -> bytes:
    """Return a state dict of many entries."""
    return state_dict(*(entry(index) for index in range(count)))


BOMBS: Mapping[str, bytes] = {
    "lists in lists": nested(b"](", b"e", 200_000),
    "dicts in dicts": nested(b"}(K\x01", b"u", 100_000),
    "tuples in tuples": nested(b"(", b"t", 100_000),
    "a module in itself": PROTO
    + b"cm\nM\n)\x81q\x00}("
    + text("_parameters")
    + b"}"
    + text("_modules")
    + b"}("
    + b"".join(text(f"m{index}") + b"h\x00" for index in range(20_000))
    + b"uub.",
    "20,001 tensors": repeated(20_001, lambda index: (f"t{index}", tensor(0, (1,), (1,)))),
    "10,000 networks": repeated(
        20_000,
        lambda index: (
            f"n{index // 2}." + ("conv1.weight", "layer1.0.conv1.weight")[index % 2],
            tensor(0, (1, 1, 1, 1), (1, 1, 1, 1)),
        ),
    ),
    "10,000 heads": state_dict(
        ("conv1.weight", tensor(0, (1, 1, 1, 1), (1, 1, 1, 1))),
        ("layer1.0.conv1.weight", tensor(0, (1, 1, 1, 1), (1, 1, 1, 1))),
        *((f"h{index}.weight", tensor(0, (1, 1), (1, 1))) for index in range(10_000)),
    ),
    "100,000 dicts": PROTO
    + b"}("
    + b"".join(b"K\x01}" if index == 0 else integer(index) + b"}" for index in range(100_000))
    + text("w")
    + tensor(0, (1,), (1,))
    + b"u.",
    "a name of 8 MB": state_dict(("layer1.0." * 900_000, tensor(0, (1,), (1,)))),
    "names of many underscores": state_dict(("a_" * 250 + "loss_" * 1_000_000, tensor(0, (1,), (1,)))),
    "a number of 8 million bits": state_dict(("w", tensor(0, (1,), (1,))), ("lr", integer(1 << 8_000_000))),
}


def gadget_calls(gadget: str, command: str) -> Iterator[tuple[str, bytes]]:
    """Yield pickles that call a function with a command, in the ways of published attacks."""
    called = call(gadget, command)
    yield "at the top", PROTO + called + b"."
    yield "next to weights", state_dict(("w", ONE), ("note", called))
    module, _, name = gadget.rpartition(".")
    stacked = b"\x80\x04" + text(module) + text(name) + b"\x93" + encoded((command,)) + b"R."
    yield "named by two strings", stacked
    yield "before a broken end", PROTO + called + b"0\xff\xff\xff"  # as scanners that give up at the end miss it


def random_geometries(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield tensors whose offset, sizes and strides are drawn from extremes."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    extremes = [0, 1, 2, 3, 4, 5, -1, 1 << 31, 1 << 32, (1 << 62) - 1, 1 << 62, 1 << 63, (1 << 64) - 1, 1 << 200]
    for number in range(count):
        shape = tuple(draw.choices(extremes, k=draw.randrange(5)))
        strides = tuple(draw.choices(extremes, k=len(shape) if draw.random() < 0.9 else draw.randrange(5)))
        stored = storage(numel=draw.choice([4, 4, 4, 0, 1 << 40]))
        yield f"drawn {number}", state_dict(("conv1.weight", tensor(draw.choice(extremes), shape, strides, stored)))


def _after(*parts: bytes) -> bytes:
    return PROTO + b"".join(parts) + b"."


_EVIL = b"cposix\nsystem\n"
# Instructions that torch.save never writes, or writes elsewhere: old spellings that scanners forget, extension codes,
# buffers outside of the file, items set on what is no container (CVE-2026-24747), and calls of what is no function.
INSTRUCTIONS: Mapping[str, bytes] = {
    "INST": _after(b"(", text("touch x"), b"iposix\nsystem\n"),
    "OBJ": _after(b"(", _EVIL, text("touch x"), b"o"),
    "EXT1": _after(b"\x82\x01", encoded(("touch x",)), b"R"),
    "EXT2": _after(b"\x83\x01\x00", encoded(("touch x",)), b"R"),
    "EXT4": _after(b"\x84\x01\x00\x00\x00", encoded(("touch x",)), b"R"),
    "PERSID": _after(b"Pstorage\n"),
    "GET of nothing": _after(b"h\x07"),
    "text GET and PUT": _after(b"]p0\ng0\n"),
    "memo overwritten": _after(_EVIL, b"q\x000ccollections\nOrderedDict\nq\x00)R"),
    "memo of a huge number": _after(b"]r\xff\xff\xff\x7f"),
    "DUP": _after(b"]2e"),
    "POP": _after(b"]0"),
    "POP_MARK": _after(b"(]1"),
    "LIST": _after(b"(l"),
    "DICT": _after(b"(d"),
    "STRING": _after(b"S'x'\n"),
    "STRING with an escape": _after(b"S'\\x00'\n"),
    "UNICODE": _after(b"Vx\n"),
    "INT": _after(b"I1\n"),
    "LONG": _after(b"L" + b"9" * 100_000 + b"L\n"),
    "FLOAT": _after(b"F1e400\n"),
    "LONG4 below zero": _after(b"\x8b\xff\xff\xff\xff"),
    "BINUNICODE8 of 2 ** 60": _after(b"\x8d" + struct.pack("<Q", 1 << 60)),
    "BINBYTES8 of 2 ** 63": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b".",
    "BYTEARRAY8 of 2 ** 40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x98.",
    "FRAME of 2 ** 60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "PROTO twice": _after(PROTO, b"N"),
    "protocol 6": b"\x80\x06N.",
    "protocol 255": b"\x80\xffN.",
    "no STOP": PROTO + b"}",
    "an empty stack": _after(),
    "REDUCE of a number": _after(integer(3), b")R"),
    "REDUCE without a tuple": _after(b"ccollections\nOrderedDict\n", integer(3), b"R"),
    "BUILD of a number": _after(integer(3), b"}b"),
    "BUILD of a class": _after(b"ctorch\nTensor\n", encoded({"__reduce__": 1}), b"b"),
    "SETITEM on a tensor": state_dict(("w", Spelled(ONE + integer(0) + integer(1) + b"s"))),
    "SETITEMS on a list": _after(b"](", integer(0), integer(1), b"u"),
    "SETITEM on a tuple": _after(b")", integer(0), integer(1), b"s"),
    "APPEND to a dict": _after(b"}", integer(0), b"a"),
    "APPENDS to a tensor": state_dict(("w", Spelled(ONE + b"(" + integer(0) + b"e"))),
    "ADDITEMS to a list": b"\x80\x04](" + integer(0) + b"\x90.",
    "a dict with itself as a key": _after(b"}q\x00h\x00Ns"),
    "a list in itself": _after(b"]q\x00h\x00a"),
    "a name with a line feed": b"\x80\x04" + text("os\nx") + text("system") + b"\x93.",
    "a name that is no text": b"\x80\x04" + integer(1) + text("system") + b"\x93.",
    "a name in a name": b"\x80\x04" + text("torch.serialization") + text("os.system") + b"\x93" + b")R.",
    "a name in Python 2's spelling": _after(b"c__builtin__\nexecfile\n", encoded(("x",)), b"R"),
    "getattr of getattr": _after(b"cbuiltins\ngetattr\n", b"(cbuiltins\ngetattr\n", text("__call__"), b"tR"),
    "a state with a setter": state_dict(("w", ONE), ("o", b"cm\nM\n)\x81" + encoded({"__class__": "x"}) + b"b")),
    "a name of 1 MB": _after(b"c" + b"a" * 1_000_000 + b"\nb\n"),
    "2,001 names": _after(b"](" + b"".join(b"cm\nc%d\n" % index for index in range(2001)) + b"e"),
    "a storage as a text": _after(text("storage"), b"Q"),
    "a storage of five fields too many": _after(b"(" + text("storage") * 9 + b"tQ"),
    "one storage in two ways": state_dict(
        ("a", ONE), ("b", tensor(0, (1,), (1,), storage(numel=2))), ("c", tensor(0, (1,), (1,), storage(numel=3)))
    ),
    "a sparse tensor": state_dict(("w", call("torch._utils._rebuild_sparse_tensor", 0, ()))),
    "a tensor of a subclass": state_dict(("w", call("torch._tensor._rebuild_from_type_v2", 0, 0, (), {}))),
    "a tensor on a device": state_dict(
        ("w", call("torch._utils._rebuild_device_tensor_from_numpy", 0, "f", "cpu", True))
    ),
    "a tensor of numpy": state_dict(("w", call("numpy.core.multiarray._reconstruct", "x", (0,), "b"))),
}
