from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import compress
from edged.engine import integer_convolution
from edged.engine.integer_convolution import CodedConvolution, RoundedConvolution, levels
from edged.engine.layerwise import Quantized, quantize_network
from edged.engine.memory_plan import Resources
from edged.models.resnet import CifarResNet
from edged.progress import SilentListener
from edged.spec import InputSpec, QuantSpec, Statistics
from tests.support.pictures import write_folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    root: Path = tmp_path_factory.mktemp("calibration")
    write_folder(root / "images", classes=2, images=24)
    return build_cache(root / "images", root / "cache", InputSpec(16, 16))


class Mixer(nn.Module):
    """A linear map of every pixel between convolutions, as a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.first = nn.Conv2d(8, 12, 1)
        self.second = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.relu(self.stem(x))))).mean((2, 3))


class TokenMixer(Mixer):
    """The same numbers from linear layers that read [batch, tokens, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.stem(x)).flatten(2).transpose(1, 2)
        return self.second(torch.relu(self.first(tokens))).mean(1)


class RowMixer(TokenMixer):
    """The same numbers from linear layers that read [batch, height, width, features]."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.relu(self.stem(x)).permute(0, 2, 3, 1)
        return self.second(torch.relu(self.first(rows))).mean((1, 2))


def quantized(model: nn.Module, cache: ImageCache) -> Quantized:
    spec = QuantSpec(bits=3, statistics=Statistics.BIAS)
    return quantize_network(model, cache, spec, Resources(), SilentListener())


@pytest.mark.parametrize("kind", [TokenMixer, RowMixer])
def test_linear_layers_on_maps_are_quantized_like_1x1_convolutions(kind: type[TokenMixer], cache: ImageCache):
    torch.manual_seed(0)
    convolutions = Mixer().eval().requires_grad_(False)
    linear = kind().eval().requires_grad_(False)
    state = copy.deepcopy(convolutions.state_dict())
    linear.load_state_dict({name: value.reshape(linear.state_dict()[name].shape) for name, value in state.items()})
    expected, found = quantized(convolutions, cache), quantized(linear, cache)
    for name, result in expected.results.items():
        assert torch.equal(found.results[name].weight.codes, result.weight.codes)
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name].reshape(value.shape), value)


@pytest.mark.skipif(not levels(), reason="this processor has no fast convolutions of integers")
@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (QuantSpec(bits=4, propagation=0.0), RoundedConvolution),
        (QuantSpec(bits=4, activation_bits=8), CodedConvolution),
        (QuantSpec(bits=4), None),
    ],
    ids=["fast", "codes", "floats"],
)
def test_convolutions_in_integers_change_next_to_nothing(
    spec: QuantSpec, kind: type[nn.Module] | None, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
):
    called: set[type[nn.Module]] = set()
    for each in (RoundedConvolution, CodedConvolution):
        monkeypatch.setattr(each, "forward", _noting(each, called))
    torch.manual_seed(0)
    model = CifarResNet(3).eval().requires_grad_(False)
    found = compress(model, cache, spec)
    assert called == ({kind} if kind else set())
    monkeypatch.setattr(integer_convolution, "levels", lambda: 0)
    called.clear()
    expected = compress(model, cache, spec)
    assert not called
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.relative_loss == pytest.approx(other.relative_loss, rel=0.05, abs=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.1, atol=0.1 * float(expected.logits.std()))


def _noting(kind: type[nn.Module], called: set[type[nn.Module]]) -> Callable[[nn.Module, Tensor], Tensor]:
    forward: Callable[[nn.Module, Tensor], Tensor] = kind.forward

    def noted(self: nn.Module, x: Tensor) -> Tensor:
        called.add(kind)
        return forward(self, x)

    return noted
