import argparse
import io
import pickle
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.pickle_scan import MAX_PICKLE_STEPS, MAX_TUPLES, quoted, scan_key_list, scan_pickle

scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text()
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    max_leaves=20,
)


def scan(data: bytes, extra_names: frozenset[str] = frozenset()) -> dict[str, int]:
    return scan_pickle(io.BytesIO(data), extra_names)


def pickled(value: object) -> bytes:
    """What torch.save writes as the pickle of `value`."""
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


@given(plain)
def test_plain_data_passes(value):
    assert scan(pickle.dumps(value, 2)) == {}


def test_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps([1], 2) + b"rest")
    scan_pickle(stream)
    assert stream.read() == b"rest"


def test_sizes_of_the_storages():
    shared = torch.zeros(10, dtype=torch.float16)
    value = {
        "a": torch.zeros(2, 3),
        "b": shared[2:],
        "c": shared.view(2, 5).t(),
        "scalar": torch.tensor(1),
        "five": torch.zeros(1, 1, 2, 3, 4, dtype=torch.bool),
        "parameter": torch.nn.Parameter(torch.zeros(7, dtype=torch.float64)),
    }
    assert scan(pickled(value)) == {"0": 24, "1": 20, "2": 8, "3": 24, "4": 56}


def test_what_training_scripts_add_passes():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    ordered = OrderedDict([("b", 1), ("a", OrderedDict())])
    ordered._metadata = {"version": 1}
    value = {
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
        "best": [np.float64(0.5), np.float32(1)],
        "milestones": Counter([30, 60]),
        "state": defaultdict(OrderedDict, {1: {}}),
        "kinds": [torch.device("cpu"), torch.float32, set(), {1, 2}, int, dict],
        "shapes": [torch.Size([1, 2]), torch.Size([]), torch.Size([1, 2, 3, 4])],
        "bytes": [b"", b"\xff"],
        "optimizer": optimizer.state_dict(),
        "ordered": ordered,
        "again": ordered,
    }
    scan(pickled(value))


@given(st.binary(max_size=200))
def test_random_bytes_pass_or_are_refused_in_an_orderly_way(data):
    with suppress(CheckpointError):
        scan(b"\x80\x02" + data)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("function", [eval, exec, bytearray, getattr])
def test_a_call_is_refused_by_name(function):
    with pytest.raises(UnsafeCheckpointError, match=rf"names '__builtin__\.{function.__name__}'"):
        scan(pickle.dumps({"x": Evil(function, "1 / 0")}, 2))


@pytest.mark.parametrize(
    "name",
    [
        b"os\nsystem",
        b"torch._utils\n_rebuild_wrapper_subclass",
        b"torch._tensor\n_rebuild_from_type_v2",
        b"torch\nload",
        b"collections\nOrderedDict.fromkeys",
        b"torch.storage\n_load_from_bytes",
        b"x\ny\nz",
        b"torch\n\\elastic",
    ],
)
def test_names_off_the_list_are_refused(name):
    with pytest.raises(UnsafeCheckpointError, match="edged never loads"):
        scan(b"\x80\x02c" + name + b"\n(tR.")


def test_the_first_unknown_name_is_given_and_extra_names_pass():
    data = b"\x80\x02cone\nA\n)\x81ctwo\nB\n)\x81\x86."
    with pytest.raises(UnsafeCheckpointError, match=r"names 'one\.A'"):
        scan(data)
    with pytest.raises(UnsafeCheckpointError, match=r"names 'two\.B'"):
        scan(data, frozenset({"one.A"}))
    assert scan(data, frozenset({"one.A", "two.B"})) == {}


def test_name_with_control_characters_stays_on_one_line():
    with pytest.raises(UnsafeCheckpointError) as caught:
        scan(b"\x80\x02ca\r\x1b\n[1\n.")
    assert str(caught.value).isprintable()


OPCODES = [b"0", b"2", b"(i__main__\nx\n", b"(o", b"P1\n", b"\x82\x01", b"\x8f", b"\x93", b"\x94", b"I1\n", b"Va\n"]


@pytest.mark.parametrize("opcode", OPCODES)
def test_opcodes_that_torch_save_never_writes_are_refused(opcode):
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.save never writes"):
        scan(b"\x80\x02N" + opcode + b".")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_are_refused(protocol):
    with pytest.raises(CheckpointError, match=f"protocol {protocol}"):
        scan(pickle.dumps([1], protocol))


# ---- what would make torch spend memory or time


def nested_doubling(levels: int) -> bytes:
    """t = (t, t), `levels` times: 2**levels leaves in a few bytes, which a dict key makes torch walk."""
    steps = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(levels))
    return b"\x80\x02)q\x00" + steps + b"."


def test_exponential_sharing_is_refused():
    scan(nested_doubling(8))
    with pytest.raises(UnsafeCheckpointError, match="nests shared objects"):
        scan(nested_doubling(60))


def test_what_training_shares_passes():
    """Sizes of kernels and made objects, each any number of times: a hash goes no further than them."""
    sizes = [(index, index + 1) for index in range(1000, 1300)]
    made = [OrderedDict() for _ in range(100)]
    scan(pickle.dumps([sizes, sizes[:], [(0.9, 0.999, True)] * 2, made * 30], 2))
    lists = [[index] for index in range(1000, 1300)]
    with pytest.raises(UnsafeCheckpointError, match="nests shared objects"):
        scan(pickle.dumps([lists, lists[:]], 2))


def test_deep_tuples_are_refused():
    scan(b"\x80\x02)" + b"\x85" * MAX_TUPLES + b".")
    with pytest.raises(TooLargeError, match="tuples"):
        scan(b"\x80\x02)" + b"\x85" * (MAX_TUPLES + 1) + b".")


def test_tuples_of_tensors_do_not_count():
    assert len(scan(pickled([torch.zeros(1) for _ in range(MAX_TUPLES // 4 + 1)]))) == MAX_TUPLES // 4 + 1


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


def test_codecs_other_than_latin1_are_refused():
    with pytest.raises(UnsafeCheckpointError, match="unknown encoding"):
        scan(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R.")


def test_state_that_would_replace_a_tensors_storage_is_refused():
    with pytest.raises(UnsafeCheckpointError, match="sets an object's state"):
        scan(b"\x80\x02]](K\x00K\x01)tb.")


@pytest.mark.parametrize("prefix", [b"X\xff\xff\xff\x7f", b"U\xff", b"\x8a\xff"])
def test_claimed_length_is_not_allocated(prefix):
    with pytest.raises(CheckpointError, match="cut off"):
        scan(b"\x80\x02" + prefix + b"abc")


def test_steps_are_bounded():
    start = time.process_time()
    with pytest.raises(TooLargeError, match=str(MAX_PICKLE_STEPS)):
        scan(b"\x80\x02" + b"N" * (MAX_PICKLE_STEPS + 1))
    assert time.process_time() - start < 30


# ---- storages and tensors


def tensor(
    kind: str = "torch\nFloatStorage",
    key: object = "0",
    numel: object = 6,
    tail: tuple[object, ...] = (),
    geometry=None,
) -> bytes:
    """A tensor as the old torch.save spells it; any part may be replaced."""

    def inner(value: object) -> bytes:
        return b"".join(part for part in [pickle.dumps(value, 2)[2:-1]] if part)

    pid = b"(" + b"X\x07\x00\x00\x00storagec" + kind.encode() + b"\n"
    pid += strip_puts(inner(key)) + b"X\x03\x00\x00\x00cpu" + inner(numel) + b"".join(map(inner, tail)) + b"tQ"
    parts = b"".join(strip_puts(inner(part)) for part in geometry or (0, (2, 3), (3, 1)))
    return b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + pid + parts + b"tR."


def strip_puts(data: bytes) -> bytes:
    return data[:-2] if data[-2:-1] == b"q" else data


def test_the_spelling_of_these_tests_is_torchs():
    assert scan(tensor()) == {"0": 24}
    assert scan(tensor(tail=(None,))) == {"0": 24}
    assert scan(tensor("torch\nHalfStorage", numel=1, geometry=(0, (), ()))) == {"0": 2}


@pytest.mark.parametrize(
    "part",
    [
        {"kind": "collections\nOrderedDict"},
        {"key": 0},
        {"key": "../0"},
        {"key": "\u0663"},
        {"numel": -1},
        {"numel": "6"},
        {"numel": 6.0},
        {"numel": (6,)},
        {"tail": (("view", 0, 1),)},
        {"tail": (None, None)},
    ],
)
def test_odd_storages_are_refused(part):
    with pytest.raises(CheckpointError):
        scan(tensor(**part))


def test_one_storage_of_two_sizes_is_refused():
    with pytest.raises(CheckpointError, match="two different ways"):
        scan(tensor()[:-1] + tensor(numel=7)[2:])


@given(
    st.integers(0, 40),
    st.integers(0, 10),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=4),
)
def test_tensors_pass_exactly_when_torch_can_view_them(numel, offset, dimensions):
    shape, strides = tuple(size for size, _ in dimensions), tuple(step for _, step in dimensions)
    data = tensor(numel=numel, geometry=(offset, shape, strides))
    try:
        torch.arange(numel).as_strided(shape, strides, offset)
    except RuntimeError:
        if 0 not in shape:  # empty tensors are refused later, by name
            with pytest.raises(CheckpointError, match="reaches value"):
                scan(data)
        return
    assert scan(data) == {"0": 4 * numel}


@pytest.mark.parametrize(
    "geometry",
    [
        (0, (2, 3), (3,)),
        (0, (2, -3), (3, 1)),
        (-1, (2, 3), (3, 1)),
        (0, [2, 3], (3, 1)),
        (0, (2, 3.0), (3, 1)),
        ("0", (2, 3), (3, 1)),
        (0, (2, (3,)), (3, 1)),
        (0, (1 << 70,), (1 << 70,)),
    ],
)
def test_odd_geometry_is_refused(geometry):
    with pytest.raises(CheckpointError):
        scan(tensor(geometry=geometry))


# ---- the rest


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 1001, 2500])
def test_key_list(count):
    keys = [str(i) for i in range(count)]
    assert scan_key_list(io.BytesIO(pickle.dumps(keys, 2))) == keys


@pytest.mark.parametrize("value", ["0", [0], [["0"]], ("0",), {"0": 0}, OrderedDict()])
def test_what_is_no_key_list(value):
    with pytest.raises(CheckpointError, match="list of storages is damaged"):
        scan_key_list(io.BytesIO(pickle.dumps(value, 2)))


def test_key_left_under_the_list_is_noticed():
    data = b"\x80\x02X\x01\x00\x00\x000]."
    assert pickle.loads(data) == []  # noqa: S301  # written one line above
    with pytest.raises(CheckpointError, match="list of storages is damaged"):
        scan_key_list(io.BytesIO(data))


def test_quoted_is_short_and_on_one_line():
    assert quoted("a\nb\x1b\u2028") == r"'a\nb\x1b\u2028'"
    assert len(quoted("x" * 10_000)) == 82
    bomb: list[object] = []
    for _ in range(200):
        bomb = [bomb, bomb]
    assert quoted(bomb) == "'a list'"
