from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from edged.engine.activations import ActivationStore
from edged.errors import StateError


@pytest.fixture(params=[0, 1 << 20], ids=["on disk", "in memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ActivationStore]:
    with ActivationStore(request.param, tmp_path) as store:
        yield store


def test_values_are_returned_at_half_precision_as_new_tensors(store: ActivationStore):
    x = torch.randn(4, 3, 5, 5)
    store.put("full", 0, {"x": x})
    first = store.get("full", 0)["x"]
    assert first.dtype is torch.float32
    assert_close(first, x, rtol=1e-3, atol=1e-6)
    first.zero_()
    assert_close(store.get("full", 0)["x"], x, rtol=1e-3, atol=1e-6)


def test_a_value_beyond_the_range_of_float16_is_stored_exactly(store: ActivationStore):
    x = torch.tensor([1e6, 0.1])
    store.put("full", 0, {"x": x})
    assert torch.equal(store.get("full", 0)["x"], x)


def test_dead_values_are_dropped_and_live_ones_are_kept(store: ActivationStore):
    store.put("full", 0, {"a": torch.ones(3), "b": torch.ones(3)})
    store.put("full", 0, {"b": torch.full((3,), 7.0), "c": torch.ones(3)})
    values = store.get("full", 0)
    assert set(values) == {"b", "c"}
    assert torch.equal(values["b"], torch.ones(3))


def test_streams_and_batches_are_separate(store: ActivationStore):
    store.put("full", 1, {"x": torch.ones(1)})
    assert ("full", 1) in store
    assert ("quantized", 1) not in store
    assert ("full", 0) not in store


def test_values_keep_the_networks_layout(store: ActivationStore):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    store.put("full", 0, {"x": x})
    back = store.get("full", 0)["x"]
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert_close(back, x, rtol=1e-3, atol=1e-6)


def test_space_in_the_file_is_reused_and_the_file_has_no_name(tmp_path: Path):
    with ActivationStore(memory_budget=0, folder=tmp_path) as store:
        for turn in range(5):
            store.put("full", 0, {f"x{turn}": torch.full((1000,), float(turn)), "y": torch.ones(7)})
        assert store.get("full", 0)["x4"].tolist() == [4.0] * 1000
        assert store.get("full", 0)["y"].tolist() == [1.0] * 7
        assert not list(tmp_path.iterdir())
        sizes = [link.stat().st_size for link in descriptors() if str(link.readlink()).startswith(str(tmp_path))]
        assert sizes == [2000 + 14]  # one x and y, as float16


def test_a_full_disk_raises_a_state_error(full_disk: Path):
    with ActivationStore(memory_budget=0, folder=full_disk) as store, pytest.raises(StateError):
        store.put("full", 0, {"x": torch.ones(1 << 17)})


def descriptors() -> list[Path]:
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
