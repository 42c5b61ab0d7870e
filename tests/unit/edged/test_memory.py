from __future__ import annotations

import pytest
import torch

from edged.device import CPU
from edged.memory import apart, device_peak_bytes, limit_bytes, peak_bytes, present_bytes, resident_bytes

GPU = torch.device("cuda")
MIB = 1 << 20


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a GPU of 1000 MiB: 600 for other programs, 50 for our tensors, 100 reserved by the allocator in all."""
    figures = {"memory_allocated": 50, "max_memory_allocated": 80, "memory_reserved": 100}
    for name, mib in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, mib=mib: mib * MIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (300 * MIB, 1000 * MIB))


def test_on_the_cpu_memory_is_counted_by_the_system():
    assert MIB < present_bytes(CPU) <= device_peak_bytes(CPU)
    assert device_peak_bytes(CPU) == pytest.approx(peak_bytes(), rel=0.1)
    assert present_bytes(CPU) == pytest.approx(resident_bytes(), rel=0.1)
    assert limit_bytes(CPU, None) is None
    assert limit_bytes(CPU, 7) == 7


@pytest.mark.usefixtures("allocator")
def test_on_a_gpu_memory_is_counted_by_the_allocator():
    assert (present_bytes(GPU), device_peak_bytes(GPU)) == (50 * MIB, 80 * MIB)


@pytest.mark.usefixtures("allocator")
def test_on_a_gpu_the_limit_is_at_most_what_is_free():
    assert limit_bytes(GPU, None) == limit_bytes(GPU, 500 * MIB) == 400 * MIB
    assert limit_bytes(GPU, 200 * MIB) == 200 * MIB


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3)])
def test_a_copy_apart_has_the_same_numbers_and_layout(shape: tuple[int, ...]):
    value = torch.randn(shape).transpose(0, 1)
    copy = apart(value)
    assert torch.equal(copy, value)
    assert copy.stride() == value.stride()
    assert copy.data_ptr() != value.data_ptr() or not value.numel()
