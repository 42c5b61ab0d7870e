from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from edged.errors import ArtifactError
from edged.execution.rounded import RoundedNetwork
from edged.execution.simulator import Simulator
from tests.support.executions import executed, relative_error
from tests.support.pretended import DEVICE, PretendedDevice


@pytest.mark.parametrize("name", ["option A", "yolov5"])
def test_it_computes_as_the_simulator_near_the_network(name: str) -> None:
    done = executed(name)
    rounded = RoundedNetwork(done.network, done.quantized, done.activations).eval()
    with torch.inference_mode():
        found = rounded(done.images)
        assert torch.equal(found, Simulator(done.placement, done.grids).run(done.images))
        error = relative_error(found, done.network(done.images))
    assert 0 < error < 0.05


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_ranges_of_another_network_are_refused(change: str) -> None:
    done = executed("option A")
    ranges = dict(done.activations.ranges)
    if change == "missing":
        del ranges["relu"]
    else:
        ranges["relu_99"] = (0.0, 1.0)
    with pytest.raises(ArtifactError, match=r"'relu(_99)?' is not in both; quantize the checkpoint again"):
        RoundedNetwork(done.network, done.quantized, dataclasses.replace(done.activations, ranges=ranges))


def test_the_images_are_not_modified() -> None:
    done = executed("option A")
    before = done.images.clone()
    RoundedNetwork(done.network, done.quantized, done.activations)(done.images)
    assert torch.equal(done.images, before)


def test_it_computes_on_the_cpu_for_images_of_another_device() -> None:
    done = executed("option A")
    rounded = RoundedNetwork(copy.deepcopy(done.network), done.quantized, done.activations).eval()
    with torch.inference_mode():
        expected = rounded(done.images)
    with PretendedDevice():
        found = rounded.to(DEVICE)(done.images.to(DEVICE))
        assert found.device == DEVICE
        assert torch.equal(found.cpu(), expected)


def test_layers_kept_in_float_need_no_ranges() -> None:
    done = executed("option A")
    kept = done.keeping(["layer1.0.conv1", "layer3.2.conv2"])
    rounded = RoundedNetwork(done.network, done.quantized, kept.activations).eval()
    with torch.inference_mode():
        found = rounded(done.images)
        assert torch.equal(found, Simulator(kept.placement, kept.grids).run(done.images))
    with pytest.raises(ArtifactError, match="is not in both"):
        RoundedNetwork(done.network, done.quantized, dataclasses.replace(done.activations, in_float=("linear",)))
