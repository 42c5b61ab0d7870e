import argparse
import datetime
import enum
import io
import pickle
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import CheckpointError
from edged.models.inert_pickle import Inert, StoredTensor, UnknownTensor, read_pickle
from edged.models.pickle_scan import PROTOCOLS, scan_pickle


def tree_of(value: object, protocol: int = 2) -> object:
    """What reading gives of what torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol)
    with zipfile.ZipFile(file) as archive:
        return read_pickle(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))[0]


def storages(data: bytes) -> dict[str, int]:
    """The size in bytes of each storage."""
    return {key: storage.nbytes for key, storage in read_pickle(data)[1].items()}


class Phase(enum.Enum):
    TRAIN = "TRAIN"


# ---- what is read as what


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_become_descriptions_of_where_their_values_are(protocol):
    base = torch.arange(48.0)
    tree = tree_of({"a": base[8:].view(5, 8).t(), "p": torch.nn.Parameter(torch.zeros(2).half())}, protocol)
    assert isinstance(tree["a"], StoredTensor)
    assert (tree["a"].offset, tree["a"].shape, tree["a"].strides, tree["a"].numel) == (8, (8, 5), (1, 8), 40)
    assert (tree["a"].storage.dtype, tree["a"].storage.numel, tree["a"].storage.nbytes) == (torch.float32, 48, 192)
    assert (tree["p"].shape, tree["p"].storage.dtype) == ((2,), torch.float16)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_become_plain_ones(protocol):
    value = {
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "default": defaultdict(list, {"x": [1]}),
        "counter": Counter("aab"),
        "set": {1, 2},
        "bytes": b"\xff",
        "size": torch.Size([2, 3]),
    }
    expected = {**value, "default": {"x": [1]}, "size": (2, 3)}
    assert tree_of(value, protocol) == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_inert_and_keep_what_the_file_says(protocol):
    parameter = torch.nn.Parameter(torch.zeros(3))
    value = {
        "args": argparse.Namespace(lr=0.1),
        "when": datetime.timedelta(1),
        "queue": deque([1, 2], 5),
        "phase": Phase.TRAIN,
        "optimizer": torch.optim.SGD([parameter], 0.1),
        "loss": torch.nn.CrossEntropyLoss(),
    }
    tree = tree_of(value, protocol)
    assert all(isinstance(made, Inert) for made in tree.values())
    assert tree["args"].name == "argparse.Namespace"
    assert tree["args"].state == {"lr": 0.1}
    assert tree["queue"].items == [1, 2]
    assert tree["phase"].arguments == ("TRAIN",)
    assert tree["loss"].state["reduction"] == "mean"


MEMBERS = {  # what Python 3.11.0 to 3.11.3 writes of [Phase.TRAIN, Phase.EVAL], in protocols 2 and 4
    2: b"\x80\x02]q\x00(c__builtin__\ngetattr\nq\x01cm\nPhase\nq\x02X\x05\x00\x00\x00TRAINq\x03\x86q\x04Rq\x05"
    b"h\x01h\x02X\x04\x00\x00\x00EVALq\x06\x86q\x07Rq\x08e.",
    4: b"\x80\x04]\x94(\x8c\x08builtins\x94\x8c\x07getattr\x94\x93\x94\x8c\x01m\x94\x8c\x05Phase\x94\x93\x94"
    b"\x8c\x05TRAIN\x94\x86\x94R\x94h\x03h\x06\x8c\x04EVAL\x94\x86\x94R\x94e.",
}


@pytest.mark.parametrize("protocol", MEMBERS)
def test_members_of_an_enum_that_are_looked_up_are_inert(protocol):
    scan_pickle(io.BytesIO(MEMBERS[protocol]))
    members, _, _ = read_pickle(MEMBERS[protocol])
    assert [(member.name, member.arguments) for member in members] == [("m.Phase", ("TRAIN",)), ("m.Phase", ("EVAL",))]


def test_nothing_that_a_file_names_is_imported():
    name = "this_module_does_not_exist_anywhere"
    tree, _, _ = read_pickle(b"\x80\x02c" + name.encode() + b"\nThing\n)\x81.")
    assert tree.name == f"{name}.Thing"
    assert name not in sys.modules
    before = set(sys.modules)
    read_pickle(b"\x80\x02cantigravity\nfly\n)R.")
    assert set(sys.modules) == before


def test_tensors_of_other_kinds_are_named():
    sparse = tree_of({"s": torch.eye(3).to_sparse()})["s"]
    assert sparse == UnknownTensor("torch._utils._rebuild_sparse_tensor")
    quantized, _, _ = read_pickle(b"\x80\x02ctorch._utils\n_rebuild_qtensor\n(K\x00tR.")
    assert quantized == UnknownTensor("torch._utils._rebuild_qtensor")


# ---- what is built to harm


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x06tQK\x00K\x06\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)


def test_a_checked_tensor_cannot_be_changed_by_the_file():
    plain, _, _ = read_pickle(b"\x80\x02" + TENSOR + b".")
    state = b"}X\x05\x00\x00\x00shapeK\x09\x85s"
    for tail in (state, b"N" + state + b"\x86", b"(K\x01K\x02t"):
        changed, _, _ = read_pickle(b"\x80\x02" + TENSOR + tail + b"b.")
        assert changed == plain


@pytest.mark.parametrize("target", [b"cmy\nClass\n", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"])
def test_a_class_cannot_be_changed_by_the_file(target):
    state = b"}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xs"
    for tail in (state, b"N" + state + b"\x86"):
        with pytest.raises(CheckpointError, match="damaged"):
            read_pickle(b"\x80\x02" + target + tail + b"b.")


def test_an_inert_object_takes_no_attributes_from_a_file():
    made, _, _ = read_pickle(b"\x80\x02cmy\nClass\n)\x81}X\x05\x00\x00\x00dtypeK\x01sb.")
    assert made.state == {"dtype": 1}
    with pytest.raises(AttributeError):
        made.dtype  # noqa: B018 - the access is the test


@pytest.mark.parametrize("body", [b"K\x01)R", b"X\x01\x00\x00\x00a)R", b"cm\nC\n)\x81)R", b"}K\x01K\x02s)R"])
def test_only_names_are_called(body):
    with pytest.raises(CheckpointError, match="damaged"):
        read_pickle(b"\x80\x02" + body + b".")


def test_unknown_encodings_are_refused():
    with pytest.raises(CheckpointError, match="unknown encoding"):
        read_pickle(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R.")


# ---- storages and geometry


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
    assert storages(tensor()) == {"0": 24}
    assert storages(tensor(tail=(None,))) == {"0": 24}
    assert storages(tensor("torch\nHalfStorage", numel=1, geometry=(0, (), ()))) == {"0": 2}


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
        storages(tensor(**part))


def test_one_storage_of_two_sizes_is_refused():
    with pytest.raises(CheckpointError, match="two different ways"):
        storages(tensor()[:-1] + tensor(numel=7)[2:])


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
                storages(data)
        return
    assert storages(data) == {"0": 4 * numel}


@pytest.mark.parametrize(
    "geometry",
    [
        (0, (2, 3), (3,)),
        (0, (2, -3), (3, 1)),
        (-1, (2, 3), (3, 1)),
        (0, (2, 3.0), (3, 1)),
        ("0", (2, 3), (3, 1)),
        (0, (2, (3,)), (3, 1)),
        (0, (1 << 70,), (1 << 70,)),
    ],
)
def test_odd_geometry_is_refused(geometry):
    with pytest.raises(CheckpointError):
        storages(tensor(geometry=geometry))
