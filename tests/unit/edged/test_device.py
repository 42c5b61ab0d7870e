from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from edged.artifacts.weights import load_weights, save_weights
from edged.calibration.dataset import ImageCache, build_cache
from edged.calibration.geometry import QuantizableLayer
from edged.calibration.moments import hessian, moments_for
from edged.compress import compress
from edged.device import CPU, choose_device, device_name, device_of, exact_float32, moved, synchronize
from edged.engine.memory_plan import Resources
from edged.errors import DeviceError, UsageError
from edged.models.architecture import Architecture
from edged.models.loading import LoadedNetwork, Source
from edged.models.registry import build
from edged.pipeline.engine import Engines, executor_of
from edged.spec import InputSpec, Levels, Method, Order, QuantSpec, Search, Statistics
from tests.support.pictures import write_folder
from tests.support.pretended import DEVICE, PretendedDevice

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    root: Path = tmp_path_factory.mktemp("calibration")
    write_folder(root / "images", classes=2, images=24)
    return build_cache(root / "images", root / "cache", InputSpec(16, 16))


def network() -> nn.Module:
    """Return a small network with a layer for each kind of moments; the simulated device is slow."""
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.ReLU()),
        *(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)),
    )
    return nn.Sequential(*layers).eval().requires_grad_(False)


def test_auto_chooses_a_gpu_if_available(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(
    ("build", "reason"),
    [(None, r"torch .* is built without CUDA; install"), ("12.8", r"for CUDA 12\.8 finds no GPU .* check the driver")],
)
def test_a_missing_gpu_raises_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch, build: str | None, reason: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    with pytest.raises(DeviceError, match=reason):
        choose_device("cuda")


def test_an_unknown_name_is_rejected():
    with pytest.raises(UsageError, match="device has value 'tpu'; choose auto, cpu or cuda"):
        choose_device("tpu")


def test_the_cpu_is_always_available():
    x, before = torch.randn(2, 3), torch.backends.cudnn.allow_tf32
    assert moved(x, CPU) is x
    assert device_of(nn.ReLU()) == CPU
    assert device_name(CPU) == "cpu"
    synchronize(CPU)
    with exact_float32(CPU):
        assert torch.backends.cudnn.allow_tf32 == before


def test_rounding_to_tf32_is_off_inside_and_restored_outside():
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.enabled
    with exact_float32(torch.device("cuda")):
        assert (products.allow_tf32, cudnn.allow_tf32) == (False, False)
        assert (cudnn.deterministic, cudnn.enabled) == (True, before[3])
    assert (products.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.enabled) == before


def test_the_pretended_device_is_strict():
    with PretendedDevice():
        x = torch.ones(2, 3).to(DEVICE)
        assert x.device == (x + 1.5 * torch.zeros(3, device=DEVICE)).device == DEVICE
        assert torch.equal((x @ x.t()).cpu(), torch.full((2, 2), 3.0))
        with pytest.raises(AssertionError, match="of tensors on"):
            x + torch.ones(3)


WORK = {
    "balanced": QuantSpec(),
    "one stream": QuantSpec(propagation=0.0, bits=3),
    "every search": QuantSpec(bits=3, beam=2, descent_passes=1, order=Order.BEST, augmentation=2),
    "golden": QuantSpec(search=Search.GOLDEN, order=Order.MIN_PIVOT),
    "bias": QuantSpec(statistics=Statistics.BIAS, order=Order.WEIGHT, search=Search.MSE),
    "new statistics": QuantSpec(statistics=Statistics.REESTIMATE, order=Order.ERROR, search=Search.MINMAX),
    "obq": QuantSpec(method=Method.OBQ, bits=4),
    "rtn": QuantSpec(method=Method.RTN),
    "requant": QuantSpec(method=Method.REQUANT),
    "power levels": QuantSpec(method=Method.REQUANT, levels=Levels.POWER),
}


@pytest.mark.parametrize("spec", WORK.values(), ids=WORK)
def test_quantization_runs_on_the_models_device(cache: ImageCache, spec: QuantSpec, tmp_path: Path):
    """Compare the codes, which must be equal because layers this small are multiplied by the same routines."""
    resources = Resources(activation_memory=1 << 20)  # some values stay in memory, others go to the disk
    expected = compress(network(), cache, spec, resources=resources)
    with PretendedDevice():
        found = compress(network().to(DEVICE), cache, spec, resources=resources)
        assert {value.device for value in found.model.state_dict().values()} == {DEVICE}
        save_weights(tmp_path / "weights", found.quantized, found.rest)
        logits = found.logits  # computed on the device of the model, on first access
    stored, rest = load_weights(tmp_path / "weights")
    for name, weight in expected.quantized.items():
        assert torch.equal(stored[name].codes, weight.codes)
        assert torch.equal(stored[name].scale, weight.scale)
    for name, value in expected.rest.items():
        assert_close(rest[name], value)
    assert_close(logits, expected.logits)


def test_the_engine_of_a_service_leaves_the_model_on_its_device(cache: ImageCache):
    architecture = Architecture("cifar_resnet20", 5, stem="cifar", shortcut="pad")
    torch.manual_seed(0)
    model = build(architecture).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
    with PretendedDevice():
        compressed = compress(model.to(DEVICE), cache, QuantSpec(method=Method.RTN))
        network = LoadedNetwork(model, architecture, cache.input, Source("0" * 64, 1, "a.pt", "torch-zip"))
        served = Engines(compressed, network, 1).load("onnxruntime", "float")
        assert served.onnx is not None
        assert device_of(served.model) == DEVICE
        assert executor_of(served).name == "onnxruntime"


class Classifier(nn.Module):
    """A network that integer engines can run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.act = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU()
        self.second, self.pool, self.last = nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)
        self.norm.weight.data[1] = -0.5

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.flatten(self.pool(torch.relu(self.second(self.act(self.norm(self.first(x)))))), 1))
        return y


def test_activations_are_measured_on_the_models_device(cache: ImageCache):
    spec = QuantSpec(method=Method.RTN, activation_bits=8)
    expected = compress(Classifier().eval().requires_grad_(False), cache, spec)
    with PretendedDevice():
        found = compress(Classifier().eval().requires_grad_(False).to(DEVICE), cache, spec)
        logits = found.logits
    assert expected.activations is not None
    assert found.activations is not None
    assert found.activations.ranges.keys() == expected.activations.ranges.keys()
    for name, ends in found.activations.ranges.items():
        assert ends == pytest.approx(expected.activations.ranges[name], rel=1e-3)
    assert_close(logits, expected.logits, rtol=0.05, atol=0.05)


@on_gpu
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(64, 32, 3, padding=1), (64, 28, 28)),
        (nn.Conv2d(32, 32, 3, stride=2, padding=1), (32, 28, 28)),
        (nn.Conv2d(256, 32, 1), (256, 14, 14)),
        (nn.Linear(512, 10), (512,)),
    ],
    ids=["3x3", "stride 2", "1x1", "linear"],
)
def test_a_gpu_gives_the_same_hessian(layer: QuantizableLayer, shape: tuple[int, ...]):
    torch.manual_seed(0)
    images, found = torch.randn(32, *shape), []
    for device in (CPU, torch.device("cuda")):
        moments = moments_for(layer.requires_grad_(False).to(device))
        with exact_float32(device):
            for batch in images.split(8):
                moments.update(moved(batch, device))
        found.append(hessian(moments).cpu().double())
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-5
    assert float(torch.linalg.eigvalsh(found[1][0]).min()) > -1e-5 * float(found[1].diagonal(dim1=1, dim2=2).mean())


@on_gpu
@pytest.mark.parametrize("spec", [QuantSpec(), QuantSpec(propagation=0.0, bits=3)], ids=["balanced", "one stream"])
def test_a_gpu_gives_the_same_codes_except_for_rounding(cache: ImageCache, spec: QuantSpec):
    expected, found = compress(network(), cache, spec), compress(network().to("cuda"), cache, spec)
    equal = [(found.quantized[name].codes.cpu() == weight.codes) for name, weight in expected.quantized.items()]
    assert float(torch.cat([codes.flatten() for codes in equal]).double().mean()) > 0.95
    assert_close(found.reference_logits, expected.reference_logits, rtol=1e-4, atol=1e-4)
    again = compress(network().to("cuda"), cache, spec)
    assert all(torch.equal(again.quantized[name].codes, found.quantized[name].codes) for name in found.quantized)
