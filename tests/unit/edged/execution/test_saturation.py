"""Saturation of 8-bit products: which codes have it, and whether an engine does on this machine."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.execution.executors import OnnxExecutor
from edged.execution.processor import processor_saturates
from edged.execution.saturation import (
    codes_may_saturate,
    engine_saturates,
    is_exact,
    probe_model,
    settings_may_saturate,
)
from edged.execution.simulator import Simulator
from edged.quant.grid import QuantizedWeight
from edged.quant.power_grid import PowerWeight
from edged.spec import Scheme
from tests.support.executions import executed, relative_error
from tests.support.saturation import CHANNELS, CODE, ROWS, SIDE
from tests.support.saturation import probe_model as built_probe

EMULATOR = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
STEP = CHANNELS * 255 * 127 / CODE


def weight(codes: list[list[int]], zero_points: list[int], bits: int = 8) -> QuantizedWeight:
    rows = torch.tensor(codes, dtype=torch.uint8)
    zeros = torch.tensor(zero_points, dtype=torch.uint8)
    return QuantizedWeight(rows, torch.ones(len(rows)), zeros, bits, tuple(rows.shape))


def test_codes_of_power_levels_never_saturate() -> None:
    uniform = weight([[255, 255]], [0])
    assert codes_may_saturate({"a": uniform})
    exponent = torch.tensor([16], dtype=torch.uint8)
    assert not codes_may_saturate({"a": PowerWeight(**vars(uniform), exponent=exponent)})


@given(st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1, max_size=4), st.data())
def test_codes_saturate_if_two_products_of_a_row_do_not_fit_16_bits(
    codes: list[list[int]], data: st.DataObject
) -> None:
    zeros = data.draw(st.lists(st.integers(0, 255), min_size=len(codes), max_size=len(codes)))
    sums = [
        255 * (a - zero + b - zero)
        for row, zero in zip(codes, zeros, strict=True)
        for a, b in itertools.combinations(row, 2)
    ]
    expected = any(not -(2**15) <= total < 2**15 for total in sums)
    assert codes_may_saturate({"fine": weight([[128]], [128]), "w": weight(codes, zeros)}) is expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bits": 8, "first_bits": None, "last_bits": None, "scheme": "symmetric"}, True),
        ({"bits": 7, "first_bits": None, "last_bits": None, "scheme": "symmetric"}, False),
        ({"bits": 7, "first_bits": None, "last_bits": None, "scheme": "asymmetric"}, True),
        ({"bits": 6, "first_bits": None, "last_bits": None, "scheme": "asymmetric"}, False),
        ({"bits": 4, "first_bits": 8, "last_bits": None, "scheme": "symmetric"}, True),
        ({"bits": 4, "scheme": "asymmetric"}, False),
        ({"bits": "auto", "scheme": "symmetric"}, True),
    ],
)
def test_settings_of_artifacts_that_do_not_say(settings: dict[str, object], expected: bool) -> None:
    assert settings_may_saturate(settings) is expected


@pytest.mark.parametrize(("bits", "scheme"), [(8, Scheme.SYMMETRIC), (7, Scheme.SYMMETRIC), (6, Scheme.ASYMMETRIC)])
def test_codes_of_a_network_are_as_its_settings_say(bits: int, scheme: Scheme) -> None:
    quantized = executed("resnet18", bits, scheme).quantized
    assert codes_may_saturate(quantized) is settings_may_saturate({"bits": bits, "scheme": scheme.value})


def test_the_stored_probe_is_the_model_that_it_should_be() -> None:
    stored = onnx.load_from_string(probe_model())
    onnx.checker.check_model(stored, full_check=True)
    assert stored == built_probe()


def test_sums_that_are_clipped_are_told_from_exact_ones() -> None:
    exact = np.full((1, ROWS, SIDE, SIDE), CODE * STEP, np.float32)
    clipped = exact / CODE * round(CODE * (2**15 - 1) / (2 * 255 * 127))
    assert is_exact(exact)
    assert not is_exact(clipped)
    exact[0, 3, 1, 2] = clipped[0, 3, 1, 2]
    assert not is_exact(exact)
    assert not is_exact(np.full_like(exact, np.nan))


def test_onnx_runtime_saturates_where_the_processor_does_and_never_in_its_exact_kernels() -> None:
    assert engine_saturates(lambda model: OnnxExecutor(model, 1)) is processor_saturates()
    assert not engine_saturates(lambda model: OnnxExecutor(model, 1, exact=True))


def test_exact_kernels_compute_codes_of_8_bits_as_simulated() -> None:
    done = executed("option A", 8, Scheme.SYMMETRIC)
    model = done.onnx().SerializeToString()
    images = done.images.numpy()
    exact = OnnxExecutor(model, 1, exact=True)
    found = torch.from_numpy(exact.run(images))
    assert relative_error(found, Simulator(done.placement, done.grids).run(done.images)) < 1e-3
    if not processor_saturates():
        assert np.array_equal(exact.run(images), OnnxExecutor(model, 1).run(images))


@pytest.mark.skipif(EMULATOR is None, reason="needs an emulator: `apt install qemu-user`")
@pytest.mark.parametrize("processor", ["Haswell", "Skylake-Server"])
def test_the_probe_on_an_emulated_processor_without_vnni(processor: str) -> None:
    """/proc/cpuinfo shows the real processor there: only the probe finds the saturation."""
    code = """
from edged.execution.executors import OnnxExecutor
from edged.execution.saturation import engine_saturates
print([engine_saturates(lambda model: OnnxExecutor(model, 1, exact=exact)) for exact in (False, True)])
"""
    run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=300)
    command = [str(EMULATOR), "-cpu", processor, os.path.realpath(sys.executable), "-c", code]
    done = run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.stdout.strip() == "[True, False]"
