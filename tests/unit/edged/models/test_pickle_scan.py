import argparse
import datetime
import enum
import functools
import io
import pickle
import time
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.pickle_scan import MAX_NAMES, MAX_PICKLE_STEPS, MAX_TUPLES, PROTOCOLS, quoted, scan_pickle

scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text()
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    max_leaves=20,
)


def scan(data: bytes) -> None:
    scan_pickle(io.BytesIO(data))


def pickled(value: object, protocol: int = 2) -> bytes:
    """What torch.save writes as the pickle of `value`."""
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol)
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(value=plain)
def test_plain_data_passes(value, protocol):
    scan(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_stream_is_left_behind_the_pickle(protocol):
    stream = io.BytesIO(pickle.dumps([1], protocol) + b"rest")
    scan_pickle(stream)
    assert stream.read() == b"rest"


class Phase(enum.Enum):
    TRAIN = "train"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_additions_of_training_scripts_pass(protocol):
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    ordered = OrderedDict([("b", 1), ("a", OrderedDict())])
    ordered._metadata = {"version": 1}
    value = {
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
        "best": [np.float64(0.5), np.float32(1)],
        "curve": np.arange(5),
        "milestones": Counter([30, 60]),
        "state": defaultdict(OrderedDict, {1: {}}),
        "kinds": [torch.device("cpu"), torch.float32, set(), {1, 2}, frozenset({3}), int, dict],
        "shapes": [torch.Size([1, 2]), torch.Size([]), torch.Size([1, 2, 3, 4])],
        "bytes": [b"", b"\xff", bytearray(b"x")],
        "optimizer": [optimizer, optimizer.state_dict(), torch.optim.lr_scheduler.StepLR(optimizer, 3)],
        "loss": torch.nn.CrossEntropyLoss(torch.ones(3)),
        "when": [datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc), datetime.timedelta(1), Path("x")],
        "others": [deque([1, 2], 5), types.SimpleNamespace(a=1), Phase.TRAIN, functools.partial(int, base=2)],
        "ordered": ordered,
        "again": ordered,
    }
    scan(pickled(value, protocol))


@given(st.binary(max_size=200))
def test_random_bytes_pass_or_are_refused_in_an_orderly_way(data):
    with suppress(CheckpointError):
        scan(b"\x80\x02" + data)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("function", [eval, exec, getattr, compile, open, __import__, setattr])
def test_a_function_that_runs_code_is_refused_by_name(function, protocol):
    with pytest.raises(UnsafeCheckpointError, match=rf"names '\w+\.{function.__name__}'"):
        scan(pickle.dumps({"x": Evil(function, "1 / 0")}, protocol))


LOOKUP = b"\x80\x02cbuiltins\ngetattr\n"
NAME = b"X\x04\x00\x00\x00EVAL"


@pytest.mark.parametrize(
    "rest",
    [
        b"cm\nPhase\nX\x09\x00\x00\x00__class__\x86R.",  # no member
        b"cm\nPhase\nX\x07\x00\x00\x00a.b.c.d\x86R.",
        b"cm\nPhase\n)\x81" + NAME + b"\x86R.",  # of an object, which may be a method
        b"cbuiltins\ngetattr\n" + NAME + b"\x86R.",
        b"cm\nPhase\n" + NAME + b"\x86R)\x81.",  # a class in a class
        b"(cm\nPhase\n" + NAME + b"tR.",  # spelled as no pickler does
        b"cm\nPhase\n" + NAME + b"N\x87R.",
        NAME + b"\x85R.",
        b".",
    ],
)
def test_a_lookup_of_anything_but_a_member_is_refused_by_name(rest):
    with pytest.raises(UnsafeCheckpointError, match=r"names 'builtins\.getattr', which can run code"):
        scan(LOOKUP + rest)


def test_a_lookup_in_a_module_that_runs_code_is_refused_by_its_name():
    with pytest.raises(UnsafeCheckpointError, match=r"names 'os\.path'"):
        scan(LOOKUP + b"cos\npath\n" + NAME + b"\x86R.")


@pytest.mark.parametrize(
    "name",
    [
        b"os\nsystem",
        b"posix\nsystem",
        b"subprocess\nPopen",
        b"torch\nload",
        b"torch.storage\n_load_from_bytes",
        b"torch.serialization\nload",
        b"torch.jit._serialization\nload",
        b"torch.hub\nload",
        b"runpy\n_run_code",
        b"importlib\nimport_module",
        b"builtins\neval",
        b"__builtin__\nexecfile",
        b"builtins\ntype.mro",
        b"pickle\nloads",
        b"operator\nattrgetter",
        b"types\nFunctionType",
    ],
)
def test_names_of_functions_that_run_code_are_refused(name):
    with pytest.raises(UnsafeCheckpointError, match="edged never loads"):
        scan(b"\x80\x02c" + name + b"\n(tR.")


def test_a_name_put_together_on_the_stack_is_refused_in_the_same_way():
    with pytest.raises(UnsafeCheckpointError, match=r"names 'os\.system'"):
        scan(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94.")
    with pytest.raises(UnsafeCheckpointError, match="names a class in a way"):
        scan(b"\x80\x04\x8c\x02osK\x01\x93.")


def test_name_with_control_characters_stays_on_one_line():
    with pytest.raises(UnsafeCheckpointError) as caught:
        scan(b"\x80\x02cos\r\x1b\nsystem\nco\ns\n.".replace(b"cos\r\x1b\n", b"cos\n"))
    assert str(caught.value).isprintable()


OPCODES = [b"0", b"2", b"(i__main__\nx\n", b"(o", b"P1\n", b"\x82\x01", b"I1\n", b"Va\n", b"\x97", b"\x98"]


@pytest.mark.parametrize("opcode", OPCODES)
def test_opcodes_that_torch_save_never_writes_are_refused(opcode):
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.save never writes"):
        scan(b"\x80\x02N" + opcode + b".")


def test_other_protocols_are_refused():
    with pytest.raises(CheckpointError, match="protocol 6"):
        scan(b"\x80\x06N.")
    for protocol in (0, 1):
        with pytest.raises(CheckpointError):
            scan(pickle.dumps([1, "a"], protocol))


def test_names_are_bounded():
    def named(count: int) -> bytes:
        return b"\x80\x02" + b"".join(b"cm\nn%d\n" % index for index in range(count)) + b"."

    scan(named(MAX_NAMES))
    with pytest.raises(TooLargeError, match="names over"):
        scan(named(MAX_NAMES + 1))


# ---- what would make reading spend memory or time


def nested_doubling(levels: int) -> bytes:
    """t = (t, t), `levels` times: 2**levels leaves in a few bytes, which a dict key makes torch walk."""
    steps = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(levels))
    return b"\x80\x02)q\x00" + steps + b"."


def test_exponential_sharing_is_refused():
    scan(nested_doubling(8))
    with pytest.raises(UnsafeCheckpointError, match="nests shared tuples"):
        scan(nested_doubling(60))


def test_objects_shared_by_training_code_pass():
    """Sizes of kernels, lists and made objects, each any number of times: a hash goes no further than them."""
    sizes = [(index, index + 1) for index in range(1000, 1300)]
    made = [OrderedDict() for _ in range(100)]
    lists = [[index] for index in range(1000, 1300)]
    scan(pickle.dumps([sizes, sizes[:], lists, lists[:], [(0.9, 0.999, True)] * 2, made * 30], 2))
    deep = [((index, index), (index,)) for index in range(1000, 1300)]
    with pytest.raises(UnsafeCheckpointError, match="nests shared tuples"):
        scan(pickle.dumps([deep, deep[:]], 2))


def test_deep_tuples_are_refused():
    scan(b"\x80\x02)" + b"\x85" * MAX_TUPLES + b".")
    with pytest.raises(TooLargeError, match="tuples"):
        scan(b"\x80\x02)" + b"\x85" * (MAX_TUPLES + 1) + b".")


def test_tuples_of_tensors_and_of_plain_values_do_not_count():
    scan(pickled([torch.zeros(1, 2) for _ in range(MAX_TUPLES // 4 + 1)]))
    scan(pickle.dumps([(index, index) for index in range(MAX_TUPLES + 1)], 2))
    nested = b"K\x01\x86" * (MAX_TUPLES + 1)  # ((((), 1), 1), 1) ...
    with pytest.raises(TooLargeError, match="tuples"):
        scan(b"\x80\x02)" + nested + b".")


def test_sharing_text_and_one_object_often_is_not_exponential():
    one = argparse.Namespace()
    scan(pickled([{"betas": one, "lr": "constant"} for _ in range(1000)]))


@pytest.mark.parametrize("body", [b"}q\x00}q\x00h\x00", b"(ctorch\nFloatStorage\nQq\x00"])
def test_odd_use_of_the_memo_is_refused(body):
    with pytest.raises(UnsafeCheckpointError, match="memo"):
        scan(b"\x80\x02" + body + b".")


@pytest.mark.parametrize(
    "call",
    [
        b"ccollections\nOrderedDict\nh\x00\x85R",
        b"ccollections\nOrderedDict\n(h\x00tR",
        b"ccollections\nCounter\nh\x00\x85R",
        b"c__builtin__\nset\nh\x00\x85R",
        b"cbuiltins\nset\nctorch\ndevice\nX\x03\x00\x00\x00cpu\x85R\x85R",
        b"ctorch\nSize\nh\x00\x85R",
        b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R",
    ],
)
def test_calls_that_copy_from_the_memo_are_refused(call):
    with pytest.raises(UnsafeCheckpointError, match="calls '"):
        scan(b"\x80\x02](K\x00K\x01eq\x00X\x01\x00\x00\x00aq\x01" + call + b".")


@pytest.mark.parametrize("prefix", [b"X\xff\xff\xff\x7f", b"U\xff", b"\x8a\xff"])
def test_claimed_length_is_not_allocated(prefix):
    with pytest.raises(CheckpointError, match="cut off"):
        scan(b"\x80\x02" + prefix + b"abc")


def test_steps_are_bounded():
    start = time.process_time()
    with pytest.raises(TooLargeError, match=str(MAX_PICKLE_STEPS)):
        scan(b"\x80\x02" + b"N" * (MAX_PICKLE_STEPS + 1))
    assert time.process_time() - start < 30


# ---- the rest


def test_quoted_is_short_and_on_one_line():
    assert quoted("a\nb\x1b\u2028") == r"'a\nb\x1b\u2028'"
    assert len(quoted("x" * 10_000)) == 82
    bomb: list[object] = []
    for _ in range(200):
        bomb = [bomb, bomb]
    assert quoted(bomb) == "'a list'"
    assert quoted(10**5000) == "'a number of 16610 bits'"
