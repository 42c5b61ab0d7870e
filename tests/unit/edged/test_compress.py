from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import Compressed, compress
from edged.errors import ArchitectureError
from edged.models.architecture import Architecture
from edged.models.cluster_affine import ClusterAffine
from edged.models.layers import quantizable_layers
from edged.models.registry import load_model
from edged.progress import SilentListener
from edged.spec import RECIPES, Fit, InputSpec, Method, Order, QuantSpec, Statistics, recipe
from tests.support.compressed import digest_of_codes, network, small_cache
from tests.support.pictures import write_folder
from tests.support.repository import ROOT
from tests.support.yolov5_samples import tiny_model, tiny_plan


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return small_cache(tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def model(cache: ImageCache) -> nn.Module:
    return network(cache, blocks=1)


def test_more_bits_come_closer_to_full_precision(model: nn.Module, cache: ImageCache):
    errors = [relative_error(compress(model, cache, QuantSpec(bits=bits))) for bits in (2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("propagation", [0.0, 1.0])
def test_compensation_beats_rounding(model: nn.Module, cache: ImageCache, propagation: float):
    nearest = compress(model, cache, QuantSpec(bits=3, method=Method.RTN, propagation=0))
    ours = compress(model, cache, QuantSpec(bits=3, propagation=propagation))
    assert relative_error(ours) < 0.7 * relative_error(nearest)


def test_the_model_runs_with_exactly_the_stored_weights(model: nn.Module, cache: ImageCache):
    done = compress(model, cache, QuantSpec())
    state = done.model.state_dict()
    assert set(done.quantized) | set(done.rest) == set(model.state_dict())
    for name, weight in done.quantized.items():
        assert torch.equal(weight.decode(), state[name])
    with torch.inference_mode():
        assert_close(done.model(cache.batch(cache.held_out)), done.logits, rtol=1e-4, atol=1e-4)


def test_the_model_is_not_modified(model: nn.Module, cache: ImageCache):
    before = copy.deepcopy(model.state_dict())
    compress(model, cache, QuantSpec(bits=2))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_statistics_are_corrected_only_if_that_helps(model: nn.Module, cache: ImageCache):
    corrected = compress(model, cache, QuantSpec(bits=2))
    assert corrected.bn_reestimated
    trained = model.state_dict() | {name: weight.decode() for name, weight in corrected.quantized.items()}
    plain = copy.deepcopy(model)
    plain.load_state_dict(trained)
    with torch.inference_mode():
        logits = plain(cache.batch(cache.held_out))
    assert relative_error(corrected) < float(
        (logits - corrected.reference_logits).square().sum() / corrected.reference_logits.square().sum()
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("statistics", [Statistics.BIAS, Statistics.MATCH, Statistics.REESTIMATE])
def test_whatever_is_done_to_statistics_the_held_out_error_does_not_rise(
    model: nn.Module, cache: ImageCache, statistics: Statistics, bits: int
):
    done = compress(model, cache, QuantSpec(bits=bits, statistics=statistics, propagation=0))
    trained = compress(model, cache, QuantSpec(bits=bits, statistics=Statistics.NONE, propagation=0))
    assert all(torch.equal(done.quantized[name].codes, trained.quantized[name].codes) for name in done.quantized)
    changed = [name for name, value in done.rest.items() if not torch.equal(value, trained.rest[name])]
    assert done.bn_reestimated == bool(changed) == (relative_error(done) < relative_error(trained))
    if done.bn_reestimated and statistics is Statistics.BIAS:
        assert {name.rsplit(".", 1)[1] for name in changed} == {"running_mean", "bias"}
        assert [name for name in changed if name.endswith("bias")] == ["linear.bias"]
    if not done.bn_reestimated:
        assert torch.equal(done.logits, trained.logits)


def test_statistics_stay_as_trained_when_asked(model: nn.Module, cache: ImageCache):
    done = compress(model, cache, QuantSpec(bits=2, statistics=Statistics.NONE))
    assert not done.bn_reestimated
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in done.rest.items())


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_logits_are_transformed_only_if_that_helps(model: nn.Module, cache: ImageCache, bits: int):
    plain = compress(model, cache, QuantSpec(bits=bits))
    done = compress(model, cache, QuantSpec(bits=bits, cluster_affine=True))
    assert all(torch.equal(done.quantized[name].codes, plain.quantized[name].codes) for name in done.quantized)
    added = {name: value for name, value in done.rest.items() if name not in plain.rest}
    if done.corrected_share is None:
        assert (added, relative_error(done)) == ({}, relative_error(plain))
        return
    assert added.keys() == {f"correction.{part}" for part in ("centroids", "gain", "shift")}
    assert relative_error(done) < relative_error(plain)
    assert relative_error(done) / relative_error(plain) == pytest.approx(1 - done.corrected_share)
    assert torch.equal(done.logits, done.model.correction(plain.logits))


def test_a_transformation_helps_at_2_bits_where_nothing_else_corrects(model: nn.Module, cache: ImageCache):
    spec = QuantSpec(bits=2, statistics=Statistics.NONE, propagation=0, cluster_affine=True)
    share = compress(model, cache, spec).corrected_share
    assert share is not None
    assert share > 0.1


def test_a_transformation_whose_error_is_not_a_number_is_not_kept(
    model: nn.Module, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
):
    def overflowed(quantized: Tensor, reference: Tensor, seed: int) -> ClusterAffine:
        found = ClusterAffine.empty(1, quantized.shape[1])
        return ClusterAffine(*(torch.full_like(value, torch.nan) for value in found.buffers()))

    monkeypatch.setattr("edged.compress.fit_cluster_affine", overflowed)
    assert compress(model, cache, QuantSpec(bits=2, cluster_affine=True)).corrected_share is None


def test_a_detector_has_no_logits_to_transform(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    write_folder(tmp_path / "images", classes=2, images=20)
    cache = build_cache(tmp_path / "images", tmp_path / "cache", InputSpec.letterbox(32))
    done = compress(tiny_model(), cache, QuantSpec(bits=2, cluster_affine=True))
    assert done.corrected_share is None
    assert "cluster_affine has no effect" in caplog.text


def test_a_seed_gives_the_same_codes(model: nn.Module, cache: ImageCache):
    first, second = (compress(model, cache, QuantSpec(bits=3, seed=5)) for _ in range(2))
    assert all(torch.equal(weight.codes, second.quantized[name].codes) for name, weight in first.quantized.items())


CODES_OF_A_PROCESS = """
import sys
from pathlib import Path
from edged.calibration.dataset import ImageCache
from edged.spec import InputSpec
from tests.support.compressed import digest_of_codes, network
cache = ImageCache(Path(sys.argv[1]), InputSpec(16, 16))
print(digest_of_codes(network(cache, blocks=1), cache))
"""


def test_a_seed_gives_the_same_codes_in_another_process(cache: ImageCache):
    command = [sys.executable, "-c", CODES_OF_A_PROCESS, str(cache.directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{digest_of_codes(network(cache, blocks=1), cache)}\n"


def test_reports_cover_every_layer(model: nn.Module, cache: ImageCache):
    done = compress(model, cache, QuantSpec(order=Order.HESSIAN))
    assert [f"{layer.name}.weight" for layer in done.layers] == list(done.quantized)
    for layer in done.layers:
        assert layer.order == "hessian"
        assert layer.bits == 4
        assert 0 < layer.relative_loss < 0.2
        assert 0 < layer.images <= len(cache.calibration)
        assert layer.to_dict()["name"] == layer.name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_close(model: nn.Module, cache: ImageCache, name: str):
    done = compress(model, cache, recipe(name, bits=4))
    assert relative_error(done) < 0.1
    assert {layer.images for layer in done.layers} <= set(range(10 * len(cache.calibration) + 1))


def test_first_and_last_layer_can_have_their_own_bits(model: nn.Module, cache: ImageCache):
    done = compress(model, cache, QuantSpec(bits=3, first_bits=8, last_bits=6))
    assert [layer.bits for layer in done.layers] == [8, *[3] * 6, 6]


def test_the_full_model_keeps_its_statistics_when_they_are_reestimated(model: nn.Module, cache: ImageCache):
    before = copy.deepcopy(model.state_dict())
    compress(model, cache, QuantSpec(statistics=Statistics.REESTIMATE))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_progress_reaches_its_end(model: nn.Module, cache: ImageCache):
    class Recorder(SilentListener):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def progress(self, done: int, total: int) -> None:
            self.seen.append((done, total))

    recorder = Recorder()
    compress(model, cache, QuantSpec(), listener=recorder)
    assert recorder.seen == [(done, 8) for done in range(1, 9)]


@pytest.fixture(scope="module")
def letterboxes(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    root: Path = tmp_path_factory.mktemp("letterboxes")
    write_folder(root / "images", classes=0, images=48)
    spec = InputSpec(32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), Fit.LETTERBOX)
    return build_cache(root / "images", root / "cache", spec)


def test_a_detector_comes_closer_with_more_bits(letterboxes: ImageCache):
    model = tiny_model()
    errors = [relative_error(compress(model, letterboxes, QuantSpec(bits=bits))) for bits in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_all_heads_of_a_detector_are_last(letterboxes: ImageCache):
    done = compress(tiny_model(), letterboxes, QuantSpec(bits=4, first_bits=8, last_bits=6))
    bits = {layer.name: layer.bits for layer in done.layers}
    assert bits.pop("model.0.conv") == 8
    assert (bits.pop("model.9.m.0"), bits.pop("model.9.m.1")) == (6, 6)
    assert set(bits.values()) == {4}


SMALL = [
    (QuantSpec(bits=4), 4),
    (QuantSpec(bits=4, activation_bits=8), 7),
    (QuantSpec(bits=8, activation_bits=8), 8),
    (QuantSpec(bits=4, activation_bits=8, small_bits=4), 4),
    (QuantSpec(bits=4, small_bits=6), 6),
]


@pytest.mark.parametrize(("spec", "wanted"), SMALL)
def test_small_layers_and_heads_have_their_own_bits(letterboxes: ImageCache, spec: QuantSpec, wanted: int):
    model = tiny_model()
    done = compress(model, letterboxes, dataclasses.replace(spec, method=Method.RTN, last_bits=None))
    sizes = {name: layer.weight.numel() for name, layer in quantizable_layers(model).items()}
    small = {name for name, size in sizes.items() if size * 100 <= sum(sizes.values())}
    assert 0 < len(small) < len(sizes) / 2
    for layer in done.layers:
        assert layer.bits == (wanted if layer.name in small or layer.name.startswith("model.9.m.") else spec.bits)


@pytest.mark.parametrize(("bits", "reach"), [(7, 64), (8, 128)])
def test_wide_codes_are_around_the_middle(model: nn.Module, cache: ImageCache, bits: int, reach: int):
    """Sums of two products with 8-bit activations then fit 16 bits, for 7 bits, or each code fits 8 bits."""
    done = compress(model, cache, QuantSpec(bits=bits, activation_bits=8, method=Method.RTN))
    for weight in done.quantized.values():
        whole = weight.codes.int() - weight.zero_point.int()[:, None]
        assert -reach <= int(whole.min()) <= int(whole.max()) < reach
    assert 2 * 255 * 64 < 1 << 15


def test_bits_of_the_ends_count_more_than_those_of_small_layers(letterboxes: ImageCache):
    spec = QuantSpec(bits=4, activation_bits=8, method=Method.RTN, first_bits=3, last_bits=5)
    bits = {layer.name: layer.bits for layer in compress(tiny_model(), letterboxes, spec).layers}
    assert (bits["model.0.conv"], bits["model.9.m.0"], bits["model.9.m.1"]) == (3, 5, 5)


def test_the_last_layer_of_a_classifier_is_no_head_of_a_detector(model: nn.Module, cache: ImageCache):
    done = compress(model, cache, QuantSpec(bits=4, activation_bits=8, method=Method.RTN))
    sizes = [layer.weight.numel() for layer in quantizable_layers(model).values()]
    assert [layer.bits for layer in done.layers] == [7 if size * 200 <= sum(sizes) else 4 for size in sizes]


def test_a_quantized_detector_is_rebuilt_from_its_artifact_data(letterboxes: ImageCache):
    done = compress(tiny_model(), letterboxes, QuantSpec())
    architecture = Architecture.from_dict(json.loads(json.dumps(Architecture.detector(tiny_plan()).to_dict())))
    state = {name: weight.decode() for name, weight in done.quantized.items()}
    state |= {name: value.clone() for name, value in done.rest.items()}  # as files hold them
    served = load_model(state, architecture)
    with torch.inference_mode():
        assert_close(served(letterboxes.batch(letterboxes.held_out)), done.logits, rtol=1e-4, atol=1e-4)


def test_nothing_to_quantize_is_an_error(cache: ImageCache):
    with pytest.raises(ArchitectureError, match="no convolution or linear layer"):
        compress(nn.Sequential(nn.ReLU(), nn.Flatten()), cache, QuantSpec())


def relative_error(done: Compressed) -> float:
    difference = (done.logits - done.reference_logits).square().sum()
    return float(difference / done.reference_logits.square().sum())


def outputs(done: Compressed, cache: ImageCache) -> torch.Tensor:
    with torch.inference_mode():
        return done.served(cache.batch(cache.held_out))


@pytest.mark.parametrize("propagation", [0.0, 1.0])
def test_activations_are_rounded_to_ranges_of_the_images(model: nn.Module, cache: ImageCache, propagation: float):
    in_float = compress(model, cache, QuantSpec(bits=8, propagation=propagation))
    done = compress(model, cache, QuantSpec(bits=8, activation_bits=8, propagation=propagation))
    assert in_float.activations is None
    assert done.activations is not None
    pixels = cache.batch(torch.arange(len(cache)))
    low, high = done.activations.ranges["x"]
    assert float(pixels.min()) <= low <= 0 <= high <= float(pixels.max())
    assert torch.equal(outputs(done, cache), done.logits)
    assert relative_error(in_float) < relative_error(done) < 0.02


def test_a_later_layer_corrects_the_rounding_of_activations(model: nn.Module, cache: ImageCache):
    """Weights quantized from rounded activations fit these better than weights quantized from exact ones."""
    spec = QuantSpec(bits=3, activation_bits=8, statistics=Statistics.NONE)
    done = compress(model, cache, spec)
    plain = compress(model, cache, QuantSpec(bits=3, statistics=Statistics.NONE))
    assert any(not torch.equal(weight.codes, plain.quantized[name].codes) for name, weight in done.quantized.items())


def test_a_network_of_negative_factors_keeps_its_function(model: nn.Module, cache: ImageCache):
    turned = copy.deepcopy(model)
    turned.bn1.weight[:5] *= -1
    done = compress(turned, cache, QuantSpec(bits=8, activation_bits=8))
    assert relative_error(done) < 0.02
    assert bool((done.rest["bn1.weight"] >= 0).all())
    with torch.inference_mode():
        assert_close(done.reference_logits, turned(cache.batch(cache.held_out)), rtol=1e-3, atol=1e-3)


def test_the_output_layers_of_a_detector_stay_in_float(letterboxes: ImageCache):
    done = compress(tiny_model(), letterboxes, QuantSpec(bits=8, method=Method.RTN, activation_bits=8))
    assert done.activations is not None
    assert done.activations.float_layers == ("model.9.m.0.weight", "model.9.m.1.weight")
    assert relative_error(done) < 0.05


def test_what_engines_cannot_run_is_refused_before_the_work(cache: ImageCache):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, dilation=2)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    listener = SilentListener()
    listener.planned = lambda plan: pytest.fail("the work was planned")  # type: ignore[method-assign]
    with pytest.raises(ArchitectureError, match="a dilated convolution"):
        compress(Odd().eval(), cache, QuantSpec(activation_bits=8), listener=listener)
    assert compress(Odd().eval(), cache, QuantSpec(method=Method.RTN)).activations is None
