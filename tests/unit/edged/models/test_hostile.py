"""Files that are built to harm: no code runs, one line says why, and memory and work stay in bounds.

What each module rejects has its test with that module; these are whole files, of all formats.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edged.errors import RejectedError
from edged.models.inspection import inspect_checkpoint
from tests.support.refusals import refused

PROTO = b"\x80\x02"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
MACHINE = pickle.dumps({"little_endian": True}, 2)


def as_zip(pickled: bytes, values: int = 4) -> bytes:
    """A file of torch.save with the given pickle and one storage of float32 values."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/byteorder", b"little")
        archive.writestr("m/data/0", bytes(4 * values))
        archive.writestr("m/version", b"3\n")
    return file.getvalue()


def as_legacy(pickled: bytes, values: int = 4) -> bytes:
    """The same in the format before torch 1.6."""
    keys = pickle.dumps(["0"], 2)
    return MAGIC + VERSION + MACHINE + pickled + keys + struct.pack("<q", values) + bytes(4 * values)


MAKERS = {"zip": as_zip, "legacy": as_legacy}


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = pickle.encode_long(value)
    return b"\x8b" + struct.pack("<i", len(encoded)) + encoded


def storage(key: str = "0", numel: int = 4, kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + integer(numel) + b"tQ"


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], stored: bytes = storage()) -> bytes:
    listed = [b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, strides)]
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + integer(offset) + b"".join(listed) + b"\x89" + hooks + b"tR"
    )


def state_dict(*entries: tuple[str, bytes]) -> bytes:
    return PROTO + b"}(" + b"".join(text(name) + value for name, value in entries) + b"u."


@pytest.mark.parametrize("form", MAKERS)
def test_the_spelling_of_these_tests_is_torchs(form: str, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(MAKERS[form](state_dict(("w", tensor(0, (2, 2), (2, 1)))), 4))
    if form == "zip":  # torch's own legacy files have a sixth entry in each storage
        assert torch.load(tmp_path / "m.pt", weights_only=True)["w"].shape == (2, 2)
    with pytest.raises(RejectedError, match="fit no supported network"):
        inspect_checkpoint(tmp_path / "m.pt")


GEOMETRIES = {
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


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_impossible_tensors_are_rejected(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(MAKERS[form](state_dict(("conv1.weight", GEOMETRIES[kind])), 4))
    refused(path)


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
GADGETS = _GADGETS.split()


@pytest.mark.parametrize("form", MAKERS)
def test_functions_that_run_code_are_rejected_by_name(form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for gadget in GADGETS:
        module, _, name = gadget.rpartition(".")
        call = f"c{module}\n{name}\n".encode() + b"(" + text("touch x") + b"tR"
        for content in (PROTO + call + b".", state_dict(("w", tensor(0, (1,), (1,))), ("note", call))):
            path.write_bytes(MAKERS[form](content, 4))
            assert f"it names {gadget[:60]!r}"[:60] in refused(path), gadget


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return PROTO + b"}(" + text("a") + opening * depth + closing * depth + text("w") + tensor(0, (1,), (1,)) + b"u."


def repeated(count: int, entry: Callable[[int], tuple[str, bytes]]) -> bytes:
    return state_dict(*(entry(index) for index in range(count)))


BOMBS = {
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


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_rejected(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(MAKERS[form](BOMBS[kind], 4))
    with pytest.raises(RejectedError) as caught:
        inspect_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols_are_rejected(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for content in (pickle.dumps({"w": [1.5]}, protocol), as_zip(pickle.dumps({"w": [1.5]}, protocol))):
        path.write_bytes(content)
        assert "protocol 0 or 1" in refused(path)


LEGACY_LIES = {
    "a count above the file's": struct.pack("<q", 1 << 40) + bytes(16),
    "a count below zero": struct.pack("<q", -1) + bytes(16),
    "another count than the pickle's": struct.pack("<q", 3) + bytes(16),
    "no values": struct.pack("<q", 4),
    "no count": b"",
}


@pytest.mark.parametrize("kind", LEGACY_LIES)
def test_wrong_sizes_in_legacy_files_are_rejected(kind: str, tmp_path: Path) -> None:
    head = as_legacy(state_dict(("w", tensor(0, (4,), (1,)))), 0)[:-8]
    (tmp_path / "m.pt").write_bytes(head + LEGACY_LIES[kind])
    refused(tmp_path / "m.pt")


def safetensors(header: str, body: bytes = bytes(16)) -> bytes:
    encoded = header.encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def described(**changes: object) -> str:
    return json.dumps({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes)


HEADERS = {
    "a name twice": f'{{"w": {described()}, "w": {described(data_offsets=[0, 16])}}}',
    "overlapping tensors": f'{{"a": {described()}, "b": {described(shape=[2], data_offsets=[8, 16])}}}',
    "a gap": f'{{"a": {described(shape=[2], data_offsets=[8, 16])}}}',
    "an end beyond the file": f'{{"a": {described(shape=[1 << 30], data_offsets=[0, 4 << 30])}}}',
    "a size below zero": f'{{"a": {described(shape=[-4])}}}',
    "a size that overflows": f'{{"a": {described(shape=[1 << 62, 1 << 62])}}}',
    "a size as text": f'{{"a": {described(shape=["4"])}}}',
    "an unknown type": f'{{"a": {described(dtype="Q4")}}}',
    "a list": "[]",
    "half a header": '{"a": {"dtype": "F32"',
    "metadata of a wrong kind": f'{{"__metadata__": [1], "a": {described()}}}',
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_that_cannot_be_are_rejected(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(HEADERS[kind]))
    with pytest.raises(RejectedError) as caught:
        inspect_checkpoint(path)
    assert str(caught.value).isprintable()


def test_zip_bombs_are_rejected(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", state_dict(("w", tensor(0, (4,), (1,)))))
        archive.writestr("m/data/0", bytes(64 << 20))
    path = tmp_path / "m.pt"
    path.write_bytes(bomb.getvalue())
    assert "compressed or encrypted" in refused(path)


def test_a_zip_with_a_name_twice_is_rejected(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", state_dict(("w", tensor(0, (4,), (1,)))))
        archive.writestr("m/data/0", bytes(16))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("m/data/0", bytes(16))
    path = tmp_path / "m.pt"
    path.write_bytes(file.getvalue())
    assert "occurs twice" in refused(path)
