from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.comparators.method import Options
from edged.comparators.network import COMPARATORS, quantize_with
from edged.errors import UsageError
from edged.models.layers import quantizable_layers
from tests.support.comparators import images, network
from tests.support.yolov5_samples import tiny_model

OPTIONS = Options(bits=4, iterations=3)


def shallow() -> nn.Module:
    """Return a network of one block, because OBQ takes rows * d^3 operations."""
    model = network()
    model.layer2, model.layer3, model.linear = nn.Identity(), nn.Identity(), nn.Linear(16, 10)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", COMPARATORS)
def test_every_layer_has_codes_and_the_network_their_values(name: str):
    model = shallow()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen: list[tuple[int, int]] = []

    class Listener:
        def progress(self, done: int, total: int) -> None:
            seen.append((done, total))

    found = quantize_with(name, model, images, OPTIONS, Listener())  # type: ignore[arg-type]  # the rest is not used
    assert set(found.quantized) == {f"{layer}.weight" for layer in quantizable_layers(model)}
    for key, weight in found.quantized.items():
        assert weight.bits == 4
        assert int(weight.codes.max()) <= 15
        assert torch.equal(found.model.state_dict()[key], weight.decode())
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", COMPARATORS)
def test_eight_bits_are_close_to_full_precision(name: str):
    model, batch = shallow(), torch.cat(list(images()))
    found = quantize_with(name, model, images, Options(bits=8, iterations=3)).model
    assert_close(found(batch), model(batch), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", COMPARATORS)
def test_no_layer_computes_all_images_at_once(name: str, monkeypatch: pytest.MonkeyPatch):
    """A method's memory must not grow with the number of images."""
    monkeypatch.setattr("edged.comparators.inputs.PART_BYTES", 1 << 14)
    model, seen = shallow(), []
    convolve = nn.functional.conv2d

    def counted(x: torch.Tensor, *arguments: object, **more: object) -> torch.Tensor:
        seen.append(len(x))
        return convolve(x, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "conv2d", counted)
    quantize_with(name, model, lambda: (part for batch in images() for part in batch.split(4)), OPTIONS)
    assert max(seen, default=0) <= 4
    assert bool(seen) == (name not in ("rtn", "requant"))


def test_an_unknown_method_is_refused():
    with pytest.raises(UsageError, match="did you mean 'adaround'"):
        quantize_with("adaronud", network(), images, OPTIONS)


@pytest.mark.parametrize("name", ["adaround", "brecq", "bit-split"])
def test_a_detector_is_quantized_too(name: str):
    model = tiny_model()
    batches = [torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found = quantize_with(name, model, lambda: batches, Options(bits=8, iterations=2))
    assert set(found.quantized) == {f"{layer}.weight" for layer in quantizable_layers(model)}
    assert_close(found.model(batches[0]), model(batches[0]), rtol=0.1, atol=0.1)
