from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edged.calibration.dataset import ImageCache, build_cache
from edged.device import CPU
from edged.engine.images import AugmentedImages
from edged.engine.memory_plan import (
    BATCH_BYTES,
    KERNEL_BYTES,
    MARGIN,
    OVERHEAD,
    SPARING_MARGIN,
    SPARING_OVERHEAD,
    BlankInputs,
    MemoryPlan,
    Resources,
    check_memory,
    plan_work,
)
from edged.errors import MemoryLimitError
from edged.models.graph import Program
from edged.models.resnet import CifarResNet
from edged.spec import InputSpec, QuantSpec
from tests.support.pictures import write_folder

MIB = 1 << 20


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    root: Path = tmp_path_factory.mktemp("calibration")
    write_folder(root / "images", classes=2, images=24)
    return build_cache(root / "images", root / "cache", InputSpec(32, 32))


def planned(cache: ImageCache, spec: QuantSpec, resources: Resources) -> MemoryPlan:
    model = CifarResNet(3).eval()
    return plan_work(Program(model), model, AugmentedImages(cache, 1, 0), spec, resources)


def test_what_is_planned_before_images_are_decoded_is_what_is_planned_with_them(cache: ImageCache):
    model, images = CifarResNet(3).eval(), AugmentedImages(cache, 1, 0)
    blank = BlankInputs(cache.input, len(images), CPU)
    assert blank.batch(0, 2).shape == images.batch(0, 2).shape
    assert blank.batch(0, 2).stride() == images.batch(0, 2).stride()
    plans = [plan_work(Program(model), model, inputs, QuantSpec(), Resources()) for inputs in (images, blank)]
    assert plans[0].steps == plans[1].steps
    check_memory(model, cache.input, len(cache), QuantSpec(), Resources(memory_limit=plans[0].peak_bytes * 2))


@pytest.mark.parametrize(
    ("spec", "integers"),
    [
        (QuantSpec(propagation=0.0), True),
        (QuantSpec(activation_bits=8), True),
        (QuantSpec(), False),  # both streams are in float
    ],
)
def test_weights_of_integer_convolutions_are_planned(spec: QuantSpec, integers: bool, cache: ImageCache):
    assert planned(cache, spec, Resources()).integers == integers


def test_a_generous_limit_changes_nothing(cache: ImageCache):
    free = planned(cache, QuantSpec(), Resources())
    limited = planned(cache, QuantSpec(), Resources(memory_limit=free.peak_bytes + 64 * MIB))
    assert limited.steps == free.steps
    assert limited.activation_memory == free.activation_memory


def test_values_move_to_the_disk_before_batches_shrink(cache: ImageCache):
    free = planned(cache, QuantSpec(), Resources())
    assert free.activation_memory > 4 * MIB
    limit = int((free.peak_bytes - 3 * MIB) * (1 + MARGIN))
    tight = planned(cache, QuantSpec(), Resources(memory_limit=limit))
    assert tight.steps == free.steps
    assert tight.activation_memory < free.activation_memory
    assert tight.peak_bytes * (1 + MARGIN) <= limit


def test_free_memory_is_returned_before_batches_shrink(cache: ImageCache):
    free = planned(cache, QuantSpec(), Resources())
    limit = int((free.peak_bytes - free.activation_memory - 3 * MIB) * (1 + SPARING_MARGIN))
    tight = planned(cache, QuantSpec(), Resources(memory_limit=limit))
    assert (free.sparing, tight.sparing) == (False, True)
    assert not tight.integers
    assert tight.steps == free.steps
    assert tight.peak_bytes * (1 + SPARING_MARGIN) <= limit


def test_batches_shrink_when_nothing_else_suffices(cache: ImageCache, monkeypatch: pytest.MonkeyPatch):
    # Batches of so small a network are small in any case, and the margin of the process's memory exceeds them.
    monkeypatch.setattr("edged.engine.schedule.LEAST_CACHED_BYTES", BATCH_BYTES)
    monkeypatch.setattr("edged.engine.schedule.MOST_CACHED_BYTES", BATCH_BYTES)
    monkeypatch.setattr("edged.engine.memory_plan.present_bytes", lambda device: 300 * MIB)  # as it varies
    free = planned(cache, QuantSpec(), Resources())
    counted = (free.peak_bytes - free.activation_memory - free.present_bytes - KERNEL_BYTES) / OVERHEAD
    limit = free.present_bytes + KERNEL_BYTES + int(counted * SPARING_OVERHEAD) - 3 * MIB
    tight = planned(cache, QuantSpec(), Resources(memory_limit=limit))
    assert tight.steps[0].batch < free.steps[0].batch
    assert tight.peak_bytes <= limit


def test_a_limit_that_is_too_low_is_rejected_with_the_lowest_that_suffices(cache: ImageCache):
    with pytest.raises(MemoryLimitError, match=r"memory limit of 1 MiB is too little .* at least (\d+) MiB") as caught:
        planned(cache, QuantSpec(), Resources(memory_limit=MIB))
    with pytest.raises(MemoryLimitError, match=r"memory limit of 1 MiB is too little .* at least (\d+) MiB"):
        check_memory(CifarResNet(3).eval(), cache.input, len(cache), QuantSpec(), Resources(memory_limit=MIB))
    least = int(str(caught.value).split()[-2])
    # Slightly more, because the process itself grows slightly from call to call.
    assert planned(cache, QuantSpec(), Resources(memory_limit=(least + 16) * MIB)).peak_bytes <= (least + 16) * MIB


def test_independent_layers_need_memory_for_one_stream(cache: ImageCache):
    both = planned(cache, QuantSpec(), Resources())
    one = planned(cache, QuantSpec(propagation=0.0), Resources())
    assert one.activation_memory * 2 == both.activation_memory


def test_the_plan_converts_to_json_types(cache: ImageCache):
    plan = planned(cache, QuantSpec(), Resources())
    parsed = json.loads(json.dumps(plan.to_dict()))
    assert parsed["batch_sizes"] == [step.batch for step in plan.steps]
    assert parsed["peak_bytes"] > parsed["present_bytes"] > 0


MEASURE = """
import sys
from pathlib import Path

import torch

from edged.calibration.dataset import build_cache
from edged.compress import compress
from edged.engine.memory_plan import Resources
from edged.memory import peak_bytes
from edged.models.torchvision_shim import import_torchvision
from edged.spec import InputSpec
from edged.spec import QuantSpec

torch.manual_seed(0)
model = import_torchvision().models.resnet18().eval()
cache = build_cache(Path(sys.argv[1]), Path(sys.argv[2]), InputSpec(224, 224))
done = compress(model, cache, QuantSpec(), resources=Resources(memory_limit=int(sys.argv[3]) or None))
print(peak_bytes(), done.plan.peak_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 850 * MIB])
def test_the_measured_peak_matches_the_planned_one(tmp_path: Path, limit: int):
    write_folder(tmp_path / "images", classes=4, images=40)
    command = [sys.executable, "-c", MEASURE, tmp_path / "images", tmp_path / "cache", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, planned_bytes = map(int, done.stdout.split())
    assert 0.8 * planned_bytes <= measured <= 1.1 * planned_bytes  # a kernel may take back what is not used
    assert not limit or measured <= limit
