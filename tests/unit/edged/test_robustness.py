"""Networks and layers that are out of the ordinary, through the whole of `compress`."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import Compressed, compress
from edged.engine.memory_plan import Resources
from edged.execution.biases import with_representable_biases
from edged.execution.build import build_graph
from edged.execution.onnx_writer import write_onnx
from edged.execution.placement import place
from edged.models.layers import quantizable_layers
from edged.spec import InputSpec, Method, Order, QuantSpec, Search, Statistics
from tests.support.compressed import network
from tests.support.executions import run
from tests.support.pictures import write_folder

GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 3},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": (0, 2)},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "stride": (1, 3)},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": (1, 5), "padding": (0, 2)},
    {"kernel_size": (5, 1), "padding": "same"},
    {"kernel_size": (4, 3), "padding": "same"},
    {"kernel_size": 4, "stride": 4},
    *({"kernel_size": 3, "padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    root: Path = tmp_path_factory.mktemp("calibration")
    write_folder(root / "images", classes=0, images=48)
    return build_cache(root / "images", root / "cache", InputSpec(12, 12))


def small_network(bias: bool = False, **geometry: object) -> nn.Sequential:
    """A convolution, one of the given geometry, and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias),
        *([] if bias else [nn.BatchNorm2d(8)]),
        nn.ReLU(),
        nn.Conv2d(8, 8, bias=bias, **(geometry or {"kernel_size": 3, "padding": 1})),
        *([] if bias else [nn.BatchNorm2d(8)]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def relative_error(done: Compressed) -> float:
    difference = (done.logits - done.reference_logits).square().sum()
    return float(difference / done.reference_logits.square().sum())


def assert_sound(done: Compressed) -> None:
    assert bool(done.logits.isfinite().all())
    for name, tensor in done.model.state_dict().items():
        assert bool(tensor.isfinite().all()), name
    for layer in done.layers:
        assert math.isfinite(layer.loss), layer
        assert 0 <= layer.relative_loss <= 1, layer
        assert int(done.quantized[f"{layer.name}.weight"].codes.max()) < 2**layer.bits


def measured_losses(model: nn.Module, done: Compressed, images: Tensor) -> dict[str, float]:
    """What the layers' outputs lose on full-precision inputs, by running them in float64."""
    model, losses = copy.deepcopy(model).double(), {}

    def hook(name: str):
        def measure(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            quantized = copy.deepcopy(layer)
            quantized.weight = nn.Parameter(done.quantized[f"{name}.weight"].decode().double())
            difference = quantized.forward(inputs[0]) - output
            losses[name] = float(difference.square().sum() * output.shape[1] / output.numel())

        return measure

    handles = [layer.register_forward_hook(hook(name)) for name, layer in quantizable_layers(model).items()]
    with torch.inference_mode():
        model(images.double())
    for handle in handles:
        handle.remove()
    return losses


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_geometry_reports_the_loss_of_its_outputs(cache: ImageCache, geometry: dict, bias: bool):
    model = small_network(bias, **geometry)
    independent = compress(model, cache, QuantSpec(bits=3, propagation=0))
    expected = measured_losses(model, independent, cache.batch(cache.calibration))
    assert_close({layer.name: layer.loss for layer in independent.layers}, expected, rtol=1e-3, atol=1e-9)
    fine = compress(model, cache, QuantSpec(bits=8))
    assert_sound(fine)
    assert relative_error(fine) < 1e-3


def linear_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


@pytest.mark.parametrize("statistics", Statistics)
@pytest.mark.parametrize("network", [linear_network, lambda: small_network(bias=True)], ids=["linear", "conv"])
def test_networks_without_batchnorm(cache: ImageCache, network, statistics: Statistics):
    model = network()
    done = compress(model, cache, QuantSpec(bits=4, statistics=statistics))
    assert_sound(done)
    assert relative_error(done) < 0.2
    if statistics is Statistics.NONE:
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in done.rest.items())


def test_more_inputs_than_columns_is_rank_deficient_and_solved(cache: ImageCache):
    model = linear_network()  # 432 inputs, 40 images
    for order in (Order.SENSITIVITY, Order.MIN_PIVOT, Order.BEST):
        done = compress(model, cache, QuantSpec(bits=3, order=order, beam=2, descent_passes=1))
        assert_sound(done)
        assert done.layers[0].retries == 0
        assert done.layers[0].damp_ratio == 0.01


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("order", [Order.SENSITIVITY, Order.MIN_PIVOT])
def test_what_had_to_be_retried_is_in_the_report(cache: ImageCache, method: Method, order: Order):
    done = compress(linear_network(), cache, QuantSpec(damp_ratio=0, method=method, order=order, propagation=0))
    assert_sound(done)
    assert done.layers[0].retries > 0
    assert done.layers[0].damp_ratio == pytest.approx(1e-6 * 10 ** done.layers[0].retries)
    assert done.layers[0].to_dict()["retries"] == done.layers[0].retries


def test_dead_and_constant_channels(cache: ImageCache):
    model = small_network()
    first, norm = model[0], model[1]
    with torch.no_grad():
        first.weight[0] = 0  # a constant channel ...
        norm.running_var[0] = 0
        norm.bias[0] = 0.5  # ... which the next layer sees
        norm.weight[1], norm.bias[1] = 0, -1  # dead behind the ReLU
        first.weight[2] = 0.25
    for statistics in Statistics:
        done = compress(model, cache, QuantSpec(statistics=statistics, descent_passes=1))
        assert_sound(done)
        assert [layer.dead_inputs for layer in done.layers] == [0, 9, 0]
        assert not done.quantized["3.weight"].decode()[:, 1].any()
        assert not done.quantized["0.weight"].decode()[0].any()


def test_a_network_whose_inputs_are_all_dead(cache: ImageCache):
    model = small_network()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.fill_(-1)
    done = compress(model, cache, QuantSpec(beam=2))
    assert_sound(done)
    assert done.layers[1].dead_inputs == 72
    assert done.layers[1].loss == 0


@pytest.mark.parametrize("search", Search)
@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize(("layer", "place"), [("3", (0, 0, 0, 0)), ("8", (slice(None), 3))], ids=["one", "a column"])
def test_outlier_weights(cache: ImageCache, method: Method, search: Search, layer: str, place: tuple):
    model = small_network()
    with torch.no_grad():
        model.get_submodule(layer).weight[place] *= 1e4
    done = compress(model, cache, QuantSpec(bits=4, method=method, search=search, beam=2, descent_passes=1))
    assert_sound(done)
    assert relative_error(done) < 0.05


@pytest.mark.parametrize("batch_bytes", [1, 200_000, 1 << 30])
def test_the_batch_size_changes_nothing_but_rounding(cache: ImageCache, batch_bytes: int):
    model = small_network()
    # 8 bits with the plain range: nothing is searched, so that rounding cannot tip a choice of grid.
    spec = QuantSpec(bits=8, search=Search.MINMAX, order=Order.NONE)
    whole, batched = (
        compress(model, cache, spec, resources=Resources(batch_bytes=size)) for size in (1 << 22, batch_bytes)
    )
    assert_close(batched.logits, whole.logits, rtol=1e-2, atol=2e-3)
    assert_sound(batched)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_converted(cache: ImageCache, dtype: torch.dtype):
    model = small_network().to(dtype)
    before = copy.deepcopy(model.state_dict())
    done = compress(model, cache, QuantSpec())
    same = compress(copy.deepcopy(model).float(), cache, QuantSpec())
    assert all(torch.equal(weight.codes, same.quantized[name].codes) for name, weight in done.quantized.items())
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(value.dtype in (torch.float32, torch.int64) for value in done.model.state_dict().values())


def test_a_single_layer_is_first_and_last(cache: ImageCache):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).eval()
    bits = [
        compress(model, cache, QuantSpec(bits=4, first_bits=first, last_bits=last)).layers[0].bits
        for first, last in ((None, None), (8, None), (None, 6), (8, 6))
    ]
    assert bits == [4, 8, 6, 6]


DAMAGES = {
    "a convolution of zeros": lambda model: model.layer1[0].conv1.weight.zero_(),
    "factors of zero": lambda model: model.layer1[0].bn2.weight.zero_(),
    "all factors negative": lambda model: model.bn1.weight.mul_(-1),
    "a large bias": lambda model: model.layer2[0].bn1.bias.fill_(1e4),
    "tiny weights with a bias": lambda model: model.layer2[0].conv1.weight[:4].mul_(1e-20),
    "a tiny variance": lambda model: model.layer3[0].bn1.running_var[:4].fill_(0.0),
    "a dead map": lambda model: model.layer3[0].bn1.bias.fill_(-1e4),
    "outputs that are constant": lambda model: model.linear.weight.zero_(),
}


def run_by_onnx_runtime(done: Compressed, images: Tensor) -> Tensor:
    assert done.activations is not None
    grids = done.activations.grids()
    placement = with_representable_biases(place(build_graph(done.model, done.quantized)), grids)
    model = write_onnx(placement, grids, images.shape[-1], "logits", tuple(done.logits.shape[1:]), batch=None)
    onnx.checker.check_model(model, full_check=True)
    return run(model, images)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("damage", DAMAGES)
def test_activations_of_odd_networks(cache: ImageCache, damage: str, bits: int):
    model = network(cache, blocks=1)
    DAMAGES[damage](model)
    done = compress(model, cache, QuantSpec(bits=bits, method=Method.RTN, activation_bits=8))
    assert_sound(done)
    found = run_by_onnx_runtime(done, cache.batch(cache.held_out))
    assert float((found - done.logits).norm()) <= 0.05 * float(done.logits.norm()) + 1e-6


def test_activations_of_images_that_are_all_black(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for index in range(40):
        Image.new("RGB", (12, 12)).save(tmp_path / "images" / f"{index}.png")
    black = build_cache(tmp_path / "images", tmp_path / "cache", InputSpec(12, 12, mean=(0.0,) * 3, std=(1.0,) * 3))
    done = compress(network(black, blocks=1), black, QuantSpec(bits=4, method=Method.RTN, activation_bits=8))
    assert done.activations is not None
    assert done.activations.ranges["x"] == (0.0, 0.0)
    assert_sound(done)
    assert_close(run_by_onnx_runtime(done, black.batch(black.held_out)), done.logits, rtol=1e-3, atol=1e-3)
