from __future__ import annotations

import torch
from torch.testing import assert_close

from edged.engine.activations import ActivationStore


def test_values_come_back_within_half_precision_as_new_tensors():
    store, x = ActivationStore(), torch.randn(4, 3, 5, 5)
    store.put("full", 0, {"x": x})
    first = store.get("full", 0)["x"]
    assert first.dtype is torch.float32
    assert_close(first, x, rtol=1e-3, atol=1e-6)
    first.zero_()
    assert_close(store.get("full", 0)["x"], x, rtol=1e-3, atol=1e-6)


def test_a_value_beyond_half_precision_is_kept_exactly():
    store, x = ActivationStore(), torch.tensor([1e6, 0.1])
    store.put("full", 0, {"x": x})
    assert torch.equal(store.get("full", 0)["x"], x)


def test_what_is_not_live_any_more_is_dropped_and_what_is_stays_as_it_was():
    store = ActivationStore()
    store.put("full", 0, {"a": torch.ones(3), "b": torch.ones(3)})
    store.put("full", 0, {"b": torch.full((3,), 7.0), "c": torch.ones(3)})
    values = store.get("full", 0)
    assert set(values) == {"b", "c"}
    assert torch.equal(values["b"], torch.ones(3))


def test_streams_and_batches_are_apart():
    store = ActivationStore()
    store.put("full", 1, {"x": torch.ones(1)})
    assert ("full", 1) in store
    assert ("quantized", 1) not in store
    assert ("full", 0) not in store
    assert store.nbytes() == 2
