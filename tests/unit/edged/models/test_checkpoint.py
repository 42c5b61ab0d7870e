import argparse
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.errors import AccessError, CheckpointError, NonFiniteError, TooLargeError, UnsafeCheckpointError
from edged.models.checkpoint import read_checkpoint
from edged.models.resnet import CifarResNet
from tests.support.refusals import refused

FORMATS = ("torch-zip", "torch-legacy", "safetensors")


def save(value, path: Path, form: str = "torch-zip") -> Path:
    if form == "safetensors":
        safetensors.torch.save_file(value, path)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "torch-zip")
    return path


def small_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a.weight": torch.randn(4, 3, generator=generator),
        "a.count": torch.tensor(7),
        "b": torch.randn(5, generator=generator),
    }


def assert_same(state, expected) -> None:
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].is_contiguous()
        assert torch.equal(state[name], tensor), name


# ---- what must load


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_tensors_that_were_saved(tmp_path, form):
    state = CifarResNet(3).state_dict()
    path = save(state, tmp_path / "model.any", form)
    loaded = read_checkpoint(path)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in state.items())
    assert loaded.format == form
    assert loaded.file_bytes == path.stat().st_size
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", FORMATS[:2])
@pytest.mark.parametrize("wrappers", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
def test_wrappers_are_opened_and_their_metadata_ignored(tmp_path, form, wrappers):
    value = small_state()
    for key in reversed(wrappers):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], momentum=0.9).state_dict()
        value = {"epoch": 3, "best_prec1": 91.5, key: value, "optimizer": optimizer, "note": "x"}
    assert_same(read_checkpoint(save(value, tmp_path / "m.pth", form)).state, small_state())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    value = OrderedDict((prefix + name, tensor) for name, tensor in small_state().items())
    assert_same(read_checkpoint(save(value, tmp_path / "m.pt")).state, small_state())


def test_prefix_of_some_names_only_stays(tmp_path):
    value = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert list(read_checkpoint(save(value, tmp_path / "m.pt")).state) == ["module.a", "b"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32_and_counters_stay(tmp_path, form, dtype):
    value = {name: t.to(dtype) if t.is_floating_point() else t for name, t in small_state().items()}
    loaded = read_checkpoint(save(value, tmp_path / "m.pt", form)).state
    expected = {name: t.float() if t.is_floating_point() else t for name, t in value.items()}
    assert_same({name: loaded[name] for name in expected}, expected)  # safetensors has an order of its own
    assert {name: t.dtype for name, t in loaded.items()} == {name: t.dtype for name, t in expected.items()}


def test_views_parameters_and_strides(tmp_path):
    base = torch.arange(48.0)
    value = {
        "transposed": base.view(6, 8).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(2.5),
    }
    assert_same(read_checkpoint(save(value, tmp_path / "m.pt")).state, {k: v.detach() for k, v in value.items()})


def test_tensors_of_one_storage_do_not_share_memory(tmp_path):
    base = torch.arange(100.0)
    loaded = read_checkpoint(save({"a": base[:50], "b": base[25:75]}, tmp_path / "m.pt")).state
    loaded["a"].zero_()
    assert torch.equal(loaded["b"], base[25:75])


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path):
    path = save(small_state(), tmp_path / "m.pt")
    before = path.read_bytes()
    read_checkpoint(path).state["b"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", FORMATS)
def test_float32_stays_mapped_from_the_file(tmp_path, form):
    path = save({"w": torch.zeros(1 << 20), "half": torch.zeros(1 << 10).half()}, tmp_path / "m.pt", form)
    loaded = read_checkpoint(path).state
    assert is_mapped(path, loaded["w"]) == (form != "torch-legacy")
    assert not is_mapped(path, loaded["half"])


def is_mapped(path: Path, tensor: torch.Tensor) -> bool:
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(start <= tensor.data_ptr() < end for start, end in ranges)


@pytest.mark.parametrize("form", FORMATS[:2])
def test_training_objects_next_to_the_weights_are_ignored(tmp_path, form):
    value = {
        "state_dict": small_state(),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
        "best": np.float64(0.5),
        "milestones": Counter([30, 60]),
        "state": defaultdict(dict, {1: {"step": 5}}),
        "where": [torch.device("cpu"), torch.float32, torch.Size([1, 2, 3, 4]), {1, 2}, b"x", 2**70],
    }
    assert_same(read_checkpoint(save(value, tmp_path / "m.pt", form)).state, small_state())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_gives_the_same(tmp_path, protocol):
    torch.save(small_state(), tmp_path / "m.pt", pickle_protocol=protocol)
    assert_same(read_checkpoint(tmp_path / "m.pt").state, small_state())


# ---- what is no checkpoint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am text\n" * 10, "it is a text file"),
        (b"\x93\x11\x42\x00" * 100, "starts with the bytes 93 11 42 00"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"PK\x03\x04" + b"\0" * 100, "zip directory cannot be read"),
        (b"PK\x05\x06" + b"\0" * 18, "starts with the bytes"),
        (b"\x80", "damaged or cut off"),
        (b"\x80\x02}.", "not one of torch.save"),
        (pickle.dumps({"a": 1}, 2), "not one of torch.save"),
        (pickle.dumps({"a": 1}, 4), "not one of torch.save"),
        (b"\x05\0\0\0\0\0\0\0{nope", "header is damaged"),
        (b"\xff\xff\xff\xff\0\0\0\0{", "claims 4294967295 bytes"),
        (b"\xff\0\0\0\0\0\0\0{}", "header has 255 bytes"),
        (b"\x02\0\0\0\0\0\0\0{}", "found nothing"),
        (b"\x02\0\0\0\0\0\0\0{}tail", "header is damaged"),
    ],
)
def test_other_files_get_a_reason(tmp_path, content, reason):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert reason in refused(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"epoch": 3, "lr": 0.1}, "found 'epoch', 'lr'"),
        ({}, "found nothing"),
        ([torch.zeros(1)], "it holds a list"),
        (torch.zeros(3), "it holds a tensor"),
        ({"a": torch.zeros(1), "b": 3}, "entry 'b' of the state dict is a int"),
        ({"state_dict": {"a": torch.zeros(1), "b": {"c": torch.zeros(1)}}}, "entry 'b' of the state dict is a dict"),
        ({3: torch.zeros(1)}, "'3' is no name"),
        ({"x" * 1000: torch.zeros(1)}, "is no name of a tensor"),
        ({"a": torch.zeros(0, 3)}, "tensor 'a' has no values"),
        ({"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": torch.zeros(1)}}}}}}}}, "no state dict"),
    ],
)
@pytest.mark.parametrize("form", FORMATS[:2])
def test_other_contents_get_a_reason(tmp_path, value, reason, form):
    assert reason in refused(save(value, tmp_path / "x.pt", form))


def test_whole_modules_and_torchscript_are_refused_with_advice(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    reason = refused(save(model, tmp_path / "whole.pt"))
    assert "save model.state_dict()" in reason
    assert "torch.nn.modules.container.Sequential" in reason


def test_torchscript_is_refused_with_advice(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", b"\x80\x02N.")
        archive.writestr("script/constants.pkl", b"\x80\x02).")
    assert "TorchScript" in refused(tmp_path / "script.pt")


def test_unreadable_paths(tmp_path):
    assert "No such file" in refused(tmp_path / "none.pt")
    assert "it is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo.pt")
    assert "not a regular file" in refused(tmp_path / "fifo.pt")
    with pytest.raises(CheckpointError, match=r"^b\\nad.pt: "):
        read_checkpoint(tmp_path / "b\nad.pt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    path = save(small_state(), tmp_path / "m.pt")
    path.chmod(0)
    with pytest.raises(AccessError, match="permission denied"):
        read_checkpoint(path)


def test_size_limit(tmp_path):
    path = save(small_state(), tmp_path / "m.pt")
    size = path.stat().st_size
    read_checkpoint(path, max_bytes=size)
    with pytest.raises(TooLargeError, match=f"has {size} bytes, the limit is {size - 1}"):
        read_checkpoint(path, max_bytes=size - 1)


# ---- what is damaged


@pytest.mark.parametrize("form", FORMATS)
def test_every_truncation_is_noticed(tmp_path, form):
    path = save(small_state(), tmp_path / "m.pt", form)
    whole = path.read_bytes()
    for length in range(0, len(whole), 1 if len(whole) < 600 else 13):
        path.write_bytes(whole[:length])
        refused(path)


def test_zeroed_page_inside_the_weights_fails_the_checksum(tmp_path):
    path = save({"w": torch.randn(100_000)}, tmp_path / "m.pt")
    with path.open("r+b") as file:
        file.seek(200_000)
        file.write(bytes(4096))
    torch.load(path, weights_only=True)  # torch does not notice
    assert "data/0' fails its checksum" in refused(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_named(tmp_path, form, bad):
    state = small_state()
    state["a.weight"][2, 1] = bad
    assert "tensor 'a.weight' holds NaN or infinity" in refused(save(state, tmp_path / "m.pt", form), NonFiniteError)


def test_safetensors_whose_length_starts_like_a_pickle(tmp_path):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for size in (0x80, 0x280):
        header = {"__metadata__": {"pad": ""}, "w": entry}
        header["__metadata__"]["pad"] = "x" * (size - len(json.dumps(header)))
        write_safetensors(tmp_path / "m.safetensors", header, bytes(4))
        assert (tmp_path / "m.safetensors").read_bytes()[:1] == b"\x80"
        assert_same(read_checkpoint(tmp_path / "m.safetensors").state, {"w": torch.zeros(1)})


def test_float64_beyond_float32_is_not_finite(tmp_path):
    refused(save({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "m.pt"), NonFiniteError)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4
    )
)
def test_damage_anywhere_gives_a_reason_or_a_state_dict(tmp_path, form, edits):
    path = save({"state_dict": small_state()} if form != "safetensors" else small_state(), tmp_path / "m.pt", form)
    data = bytearray(path.read_bytes())
    for position, patch in edits:
        start = int(position * len(data))
        data[start : start + len(patch)] = patch
    path.write_bytes(data)
    try:
        state = read_checkpoint(path).state
    except CheckpointError:
        return
    assert all(tensor.numel() <= len(data) for tensor in state.values())


# ---- what is built to harm


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def assert_not_run(path: Path, canary: Path) -> None:
    assert "'posix.system'" in refused(path, UnsafeCheckpointError)
    assert not canary.exists()


@pytest.mark.parametrize("form", FORMATS[:2])
@pytest.mark.parametrize("beside_weights", [False, True])
def test_malicious_reduce_is_named_and_not_run(tmp_path, form, beside_weights):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    evil = Evil(canary)
    save({"state_dict": small_state(), "extra": evil} if beside_weights else evil, path, form)
    assert_not_run(path, canary)
    torch.load(path, weights_only=False)
    assert canary.exists()  # the file is as dangerous as it was meant to be


def test_malicious_plain_pickle_is_named_and_not_run(tmp_path):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Evil(canary), 2))
    assert_not_run(path, canary)


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_malicious_pickle_of_another_protocol_is_not_run(tmp_path, protocol):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Evil(canary), protocol))
    refused(path)
    assert not canary.exists()


def test_nothing_runs_even_without_the_scan(tmp_path, monkeypatch):
    """Were the scan to miss a name, it would be read as inert data all the same."""
    monkeypatch.setattr("edged.models.zip_container.scan_pickle", lambda stream: None)
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    save({"w": Evil(canary), "a": torch.zeros(1)}, path)
    assert "entry 'w' of the state dict is a posix.system, not a tensor" in refused(path)
    assert not canary.exists()


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("form", FORMATS[:2])
def test_stride_zero_bomb(tmp_path, form):
    value = {"w": torch.zeros(1, dtype=torch.float16).expand(1 << 32)}
    path = save(value, tmp_path / "bomb.pt", form)
    assert path.stat().st_size < 4096
    before = peak_mebibytes()
    assert "expands a storage of 1 values" in refused(path, UnsafeCheckpointError)
    assert peak_mebibytes() - before < 50


@pytest.mark.parametrize("form", FORMATS[:2])
def test_shared_storage_bomb(tmp_path, form):
    shared = torch.zeros(50_000)
    path = save({f"w{i}": shared for i in range(2000)}, tmp_path / "bomb.pt", form)
    assert "its tensors share storage and claim 400000000 bytes" in refused(path, UnsafeCheckpointError)


def test_deflated_entry_bomb(tmp_path):
    path = tmp_path / "bomb.pt"
    save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 20_000
    assert "is compressed or encrypted" in refused(path, UnsafeCheckpointError)


def legacy(*pickles: bytes, tail: bytes = b"") -> bytes:
    header = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*header, *pickles]) + tail


@pytest.mark.parametrize("numel", [1 << 20, 1 << 40, (1 << 62) - 1, -1])
def test_claimed_storage_size_is_not_allocated(tmp_path, numel):
    tensor = b"ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu"
    number = pickle.dumps(numel, 2)[2:-1]
    body = b"\x80\x02}U\x01w" + tensor + number + b"NtQK\x00" + b"(" + number + b"t(K\x01ttRs."
    path = tmp_path / "m.th"
    path.write_bytes(legacy(body, pickle.dumps(["0"], 2), tail=struct.pack("<q", numel) + bytes(64)))
    refused(path)


@pytest.mark.parametrize("keys", [[], ["0", "0"], ["1"], "0", [0], [["0"]]])
def test_legacy_storage_list_must_fit(tmp_path, keys):
    whole = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, whole, _use_new_zipfile_serialization=False)
    stream = io.BytesIO(whole.getvalue())
    for _ in range(3):
        pickle.load(stream)  # noqa: S301  # magic, protocol and machine, written two lines above
    rest = whole.getvalue()[stream.tell() :]
    end = rest.index(b".\x80\x02]") + 1
    path = tmp_path / "m.th"
    path.write_bytes(legacy(rest[:end], pickle.dumps(keys, 2), tail=struct.pack("<q", 2) + bytes(8)))
    assert "storage" in refused(path)


def test_zip_directory_is_bounded(tmp_path):
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(100):
            archive.writestr(f"{i:03d}" + "x" * 60_000, b"")
    assert "zip directory is over" in refused(path, TooLargeError)


def test_overlapping_zip_entries_are_refused(tmp_path):
    """Many directory records of one large entry: each would be checked at full length."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", bytes(10_000))
        for i in range(50):
            info = zipfile.ZipInfo(f"a/data/{i}")
            info.header_offset, info.file_size, info.compress_size = 0, 10_000, 10_000
            info.CRC = archive.filelist[0].CRC
            archive.filelist.append(info)
    (tmp_path / "m.pt").write_bytes(file.getvalue())
    assert "overlap" in refused(tmp_path / "m.pt", UnsafeCheckpointError)


def test_repeated_zip_entry_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", b"1")
        archive.filelist.append(archive.filelist[-1])
        archive._didModify = True
    assert "occurs twice" in refused(tmp_path / "m.pt", UnsafeCheckpointError)


@pytest.mark.parametrize("change", ["comment", "trailing bytes", "shifted directory"])
def test_zip_that_two_libraries_could_read_differently_is_refused(tmp_path, change):
    path = save(small_state(), tmp_path / "m.pt")
    data = bytearray(path.read_bytes())
    assert data[-42:-38] == b"PK\x06\x07"  # torch writes 64-bit end records
    if change == "comment":
        data[-2:] = b"\x03\0abc"
    elif change == "trailing bytes":
        data += b"abc"
    else:
        data[-34:-26] = struct.pack("<Q", len(data) - 99)
    path.write_bytes(data)
    assert "laid out" in refused(path, UnsafeCheckpointError)


def test_big_endian_files_are_refused(tmp_path):
    save(small_state(), tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as little, zipfile.ZipFile(tmp_path / "big.pt", "w") as big:
        for name in little.namelist():
            big.writestr(name, b"big" if name.endswith("byteorder") else little.read(name))
    assert "big-endian" in refused(tmp_path / "big.pt")


def test_too_many_tensors(tmp_path):
    header = {f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(20_001)}
    write_safetensors(tmp_path / "m.safetensors", header, bytes(20_001))
    assert "20001 entries" in refused(tmp_path / "m.safetensors", TooLargeError)


def write_safetensors(path: Path, header: object, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "data_offsets": [0, 8]},
        [1],
        None,
    ],
)
def test_safetensors_header_must_fit(tmp_path, entry):
    write_safetensors(tmp_path / "m.safetensors", {"w": entry}, bytes(8))
    refused(tmp_path / "m.safetensors")


def test_overlapping_safetensors_are_refused(tmp_path):
    header = {f"t{i}": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]} for i in range(100)}
    write_safetensors(tmp_path / "m.safetensors", header, bytes(4000))
    assert "header is damaged" in refused(tmp_path / "m.safetensors")


def test_deep_json_is_refused(tmp_path):
    text = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    refused(tmp_path / "m.safetensors")
