import argparse
import io
import pickle
import pickletools
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.pickle_reader import MAX_PICKLE_STEPS, Node, read_pickle

scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text()


def nested(leaves: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner)
        ),
        max_leaves=20,
    )


def read(data: bytes) -> object:
    return read_pickle(io.BytesIO(data))[0]


@given(nested(scalars))
def test_plain_data_reads_as_pickle_reads_it(value):
    assert read(pickle.dumps(value, 2)) == value  # what torch.save writes


@given(nested(scalars | st.binary(max_size=300)), st.sampled_from([3, 4, 5]))
def test_later_protocols_read_as_pickle_reads_them(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


def test_bytes_in_the_old_protocol_are_skipped():
    tree = read(pickle.dumps({"a": b"", "b": b"\xff"}, 2))
    assert [item.name for item in tree.values()] == ["__builtin__.bytes", "_codecs.encode"]


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_in_an_orderly_way(data):
    with pytest.raises(CheckpointError):
        read(b"\x80\x02" + data + b"\x00")


def test_ordered_dict_reads_as_dict_with_its_order():
    value = OrderedDict([("b", 1), ("a", OrderedDict())])
    value._metadata = {"version": 1}
    assert list(read(pickle.dumps(value, 2)).items()) == [("b", 1), ("a", {})]


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_training_scripts_add_becomes_nodes(protocol):
    value = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "milestones": Counter([30, 60]),
        "state": defaultdict(dict, {1: {}}),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "seen": {1, 2},
        "shape": torch.Size([1, 2]),
    }
    tree = read(pickle.dumps(value, protocol))
    assert {key for key, item in tree.items() if isinstance(item, Node)} >= {
        "args",
        "best",
        "milestones",
        "state",
        "seen",
    }
    assert tree["args"].state == {"lr": 0.1}
    assert tuple(tree["shape"]) == (1, 2)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"), [(eval, "builtins.eval"), (exec, "builtins.exec"), (bytearray, "bytearray")]
)
def test_a_call_is_refused_by_name_and_not_made(function, name, protocol):
    argument = 10**13 if function is bytearray else "1 / 0"
    with pytest.raises(UnsafeCheckpointError, match=name.replace("builtins", r"(builtins|__builtin__)")):
        read(pickle.dumps({"x": Evil(function, argument)}, protocol))


@pytest.mark.parametrize(
    "name",
    [
        b"os\nsystem",
        b"torch._utils\n_rebuild_wrapper_subclass",
        b"torch\nload",
        b"collections\nOrderedDict.fromkeys",
        b"torch.storage\n_load_from_bytes",
        b"x\ny\nz",
        b"torch\n\\elastic",
    ],
)
def test_globals_off_the_list_are_refused(name):
    with pytest.raises(UnsafeCheckpointError, match="edged never loads"):
        read(b"\x80\x02c" + name + b"\n(tR.")


def test_name_with_control_characters_stays_on_one_line():
    with pytest.raises(UnsafeCheckpointError) as caught:
        read(b"\x80\x04\x8c\x03a\nb\x8c\x03\x1b[1\x93.")
    assert str(caught.value).isprintable()


def test_only_listed_names_can_be_called_or_built():
    for body in (b"}(tR.", b"](K\x01tb.", b"]}b."):
        with pytest.raises(UnsafeCheckpointError):
            read(b"\x80\x02" + body)


@pytest.mark.parametrize("opcode", [b"0", b"2", b"(i__main__\nx\n", b"(o", b"P1\n", b"\x82\x01"])
def test_unneeded_opcodes_are_refused(opcode):
    with pytest.raises(UnsafeCheckpointError, match="no checkpoint of tensors needs"):
        read(b"\x80\x02N" + opcode + b".")


def nested_doubling(levels: int) -> bytes:
    """t = (t, t), `levels` times: 2**levels leaves in a few bytes."""
    return b")q\x00" + b"h\x00h\x00\x86q\x00" * levels


def test_exponential_tuple_is_never_hashed_or_printed():
    start = time.process_time()
    with pytest.raises(UnsafeCheckpointError, match="key of type tuple"):
        read(b"\x80\x02" + nested_doubling(200) + b"}h\x00K\x01s.")
    read(b"\x80\x02" + nested_doubling(200) + b".")
    assert time.process_time() - start < 5


def test_deep_nesting_is_read_without_recursion():
    depth = 100_000
    value = read(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (value,) = value
    assert value == []


def test_huge_memo_index_costs_nothing():
    assert read(b"\x80\x02Nr\xff\xff\xff\xff.") is None  # CPython's own unpickler would allocate 32 GiB here


@pytest.mark.parametrize("prefix", [b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 7 + b"\x7f", b"B\xff\xff\xff\x7f"])
def test_claimed_length_is_not_allocated(prefix):
    with pytest.raises(CheckpointError, match="cut off"):
        read(b"\x80\x04" + prefix + b"abc")


def test_steps_are_bounded():
    with pytest.raises(TooLargeError, match=str(MAX_PICKLE_STEPS)):
        read(b"\x80\x02" + b"N" * (MAX_PICKLE_STEPS + 1))


def test_copies_of_a_list_from_the_memo_count_as_steps():
    items = b"](" + b"K\x00K\x01\x86" * 50_000 + b"eq\x00"
    call = b"ccollections\nOrderedDict\n(h\x00tR"
    start = time.process_time()
    with pytest.raises(TooLargeError):
        read(b"\x80\x02" + items + call * 10_000 + b".")
    assert time.process_time() - start < 30


def test_integer_keys_that_could_collide_are_refused():
    with pytest.raises(UnsafeCheckpointError, match="key of type int"):
        read(pickle.dumps({(2**61 - 1) * 2**40: 1}, 2))


def test_every_opcode_that_torch_save_writes_is_known():
    file = io.BytesIO()
    torch.save({"a": torch.zeros(2), "n": [1, 2.5, None, True, 70000, -1, 2**70], "t": (1, 2, 3, 4)}, file)
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    tree, storages = read_pickle(io.BytesIO(data))
    assert tree["n"] == [1, 2.5, None, True, 70000, -1, 2**70]
    assert tree["t"] == (1, 2, 3, 4)
    assert tree["a"].shape == (2,)
    assert [storage.nbytes for storage in storages.values()] == [8]
    assert list(pickletools.genops(data))[-1][0].name == "STOP"


@pytest.mark.parametrize(
    "pid",
    [
        ("module", None, "0", "cpu", 1),
        ("storage", "torch.FloatStorage", "0", "cpu", 1),
        ("storage", OrderedDict, "0", "cpu", 1),
        ("storage", torch.FloatStorage, 0, "cpu", 1),
        ("storage", torch.FloatStorage, "0", "cpu", -1),
        ("storage", torch.FloatStorage, "0", "cpu", 1, ("view", 0, 1)),
        7,
    ],
)
def test_odd_storage_references_are_refused(pid):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return pid if value == "here" else None

    file = io.BytesIO()
    Pickler(file, 2).dump(["here"])
    with pytest.raises(CheckpointError):
        read(file.getvalue())
