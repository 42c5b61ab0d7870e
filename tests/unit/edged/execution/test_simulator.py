"""The simulator against ONNX Runtime, which multiplies and sums the codes themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.execution.graph import Add, Conv, Graph, Linear, Relu, Weight
from edged.execution.grids import ActivationGrid
from edged.execution.placement import Placement, layer_name, place
from edged.execution.simulator import Simulator, run_float, run_rounded
from edged.quant.grid import QuantizedWeight
from edged.spec import Scheme
from tests.support.executions import Execution, executed, relative_error, run, session

RUN = ("option A", "resnet18", "head of fastai", "yolov5", "focus", "hardswish")


def codes_of_onnx_runtime(done: Execution) -> dict[str, torch.Tensor]:
    """Return the codes of each value that ONNX Runtime carries as such."""
    model = done.onnx()
    kinds = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    names = [name for name in done.placement.owners if f"{name}.codes" in kinds]
    model.graph.output.extend(kinds[f"{name}.codes"] for name in names)
    found = session(model).run([f"{name}.codes" for name in names], {"input": done.images.numpy()})
    codes = {name: torch.from_numpy(codes.astype(np.float32)) for name, codes in zip(names, found, strict=True)}
    image = done.placement.graph.input
    return codes | {image: as_pixels(codes[image], done.images.shape)}


def as_pixels(codes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Undo the joining of blocks of pixels to channels."""
    batch, channels, height, width = shape
    block = height // codes.shape[2]
    blocks = codes.reshape(batch, block, block, channels, height // block, width // block)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(shape)


@pytest.mark.parametrize("name", RUN)
def test_each_code_is_that_of_onnx_runtime_within_one_step(name: str) -> None:
    """Each value is computed from ONNX Runtime's codes of its input: a code that differs moves later ones."""
    done = executed(name)
    seen, owners, producers = codes_of_onnx_runtime(done), done.placement.owners, done.placement.graph.producers()
    assert seen.keys() >= set(done.placement.values)
    compared = 0
    for value, codes in seen.items():
        node, nodes = producers.get(value), ()
        while node is not None and len(node.inputs) == 1:
            nodes = (node, *nodes)
            source = node.inputs[0]
            if source in seen:
                break
            node = producers.get(source)
        else:  # the image, and values of two inputs
            continue
        grid, read = done.grids[owners[value]], done.grids[owners[source]]
        alone = Placement(Graph(source, 1, nodes, value), {source: owners[source]}, frozenset())
        found = grid.encode(Simulator(alone, done.grids).run(read.decode(seen[source])))
        steps = (found - codes.reshape(found.shape)).abs()
        assert float(steps.max()) <= 1, value
        assert float((steps > 0).float().mean()) < 0.001, value
        compared += 1
    assert compared >= len(done.placement.values) * 0.6


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_outputs_are_those_of_onnx_runtime(bits: int) -> None:
    """Codes of 8 bits saturate on processors with AVX2 only, unless the session computes exactly, as here."""
    done = executed("option A", bits, Scheme.SYMMETRIC if bits == 8 else Scheme.ASYMMETRIC)
    (found,) = session(done.onnx()).run(None, {"input": done.images.numpy()})
    wanted = Simulator(done.placement, done.grids).run(done.images)
    assert relative_error(torch.from_numpy(found), wanted) < 1e-3


@pytest.mark.parametrize("name", RUN)
def test_integers_are_near_the_network_in_float(name: str) -> None:
    done = executed(name)
    exact = run_float(done.placement.graph, done.images)
    assert 1e-9 < relative_error(Simulator(done.placement, done.grids).run(done.images), exact) < 0.1


@pytest.mark.parametrize("name", RUN)
def test_float_sums_err_as_much_as_integer_sums(name: str) -> None:
    """Values next to the middle between two codes get the other one, which moves all that follow."""
    done = executed(name)
    exact = run_float(done.placement.graph, done.images)
    error = relative_error(run_rounded(done.placement, done.grids, done.images), exact)
    wanted = relative_error(Simulator(done.placement, done.grids).run(done.images), exact)
    assert wanted / 3 < error < 3 * wanted


@given(st.integers(0, 2**32 - 1))
def test_float_sums_are_integer_sums_where_float32_holds_them(seed: int) -> None:
    """With scales and biases that are powers of two, no sum of few small codes is rounded."""
    generator = torch.Generator().manual_seed(seed)

    def conv(name: str, source: str) -> Conv:
        codes = torch.randint(0, 4, (3, 27), generator=generator, dtype=torch.uint8)
        weight = QuantizedWeight(codes, torch.full((3,), 0.5), torch.full((3,), 2, dtype=torch.uint8), 2, (3, 3, 3, 3))
        bias = torch.randint(-9, 9, (3,), generator=generator).float()
        return Conv(name, (source,), Weight(name, weight.decode(), weight), bias, (1, 1), (1, 1))

    nodes = (conv("a", "x"), Relu("b", ("a",)), conv("c", "b"), Add("d", ("b", "c")), conv("e", "d"))
    placement = place(Graph("x", 3, nodes, "e"))
    grids = {name: ActivationGrid(0.25, zero) for name, zero in zip(placement.values, (100, 0, 128, 90), strict=True)}
    x = torch.randn(2, 3, 5, 5, generator=generator) * 9
    assert torch.equal(run_rounded(placement, grids, x), Simulator(placement, grids).run(x))


def test_silu_in_float_is_that_of_onnx_runtime_and_nearer_to_full_precision() -> None:
    done = executed("yolov5")
    gentle = done.with_float_silu()
    simulated = Simulator(gentle.placement, gentle.grids).run(gentle.images)
    (found,) = session(gentle.onnx()).run(None, {"input": gentle.images.numpy()})
    exact = run_float(done.placement.graph, done.images)
    rounded = Simulator(done.placement, done.grids).run(done.images)
    assert relative_error(torch.from_numpy(found), simulated) < 1e-3
    assert relative_error(simulated, exact) < relative_error(rounded, exact)


@pytest.mark.parametrize("name", ["option A", "resnet18", "relu"])
def test_outputs_are_the_same_with_any_number_of_threads_and_in_any_batch(name: str) -> None:
    """A warm-up compares outputs that another process has computed with its own number of threads."""
    done = executed(name)
    simulator, threads = Simulator(done.placement, done.grids), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = simulator.run(done.images)
        torch.set_num_threads(2)
        alone = torch.cat([simulator.run(image[None]) for image in done.images])
        laid_out = simulator.run(done.images.to(memory_format=torch.channels_last))
    finally:
        torch.set_num_threads(threads)
    # Output layers of a detector compute in float.
    for found in (alone, laid_out):
        assert relative_error(found, together) < (1e-10 if name == "relu" else 1e-30)


def test_a_layer_by_hand() -> None:
    """y = 0.5 * 0.25 * ((6 - 2) * (1 - 1) + (9 - 2) * (3 - 1) + round(0.3 / 0.125)) = 2"""
    quantized = QuantizedWeight(
        torch.tensor([[1, 3]], dtype=torch.uint8), torch.tensor([0.25]), torch.tensor([1], dtype=torch.uint8), 2, (1, 2)
    )
    layer = Linear("y", ("x",), Weight("fc.weight", quantized.decode(), quantized), torch.tensor([0.3]))
    placement, grids = place(Graph("x", 2, (layer,), "y")), {"x": ActivationGrid(0.5, 2)}
    x = torch.tensor([[2.1, 3.6]])
    assert Simulator(placement, grids).run(x).tolist() == [[2.0]]
    assert run_float(placement.graph, x).item() == pytest.approx(2.1)


def test_padding_is_the_zero_point() -> None:
    quantized = QuantizedWeight(
        torch.full((1, 9), 3, dtype=torch.uint8), torch.ones(1), torch.full((1,), 2, dtype=torch.uint8), 2, (1, 1, 3, 3)
    )
    layer = Conv("y", ("x",), Weight("w", quantized.decode(), quantized), torch.zeros(1), (1, 1), (1, 1))
    placement, grids = place(Graph("x", 1, (layer,), "y")), {"x": ActivationGrid(1.0, 100)}
    assert Simulator(placement, grids).run(torch.full((1, 1, 1, 1), 5.0)).item() == 5


def test_the_images_are_not_modified() -> None:
    done = executed("option A")
    before = done.images.clone()
    Simulator(done.placement, done.grids).run(done.images)
    assert torch.equal(done.images, before)


KEPT = {
    "option A": ("conv1", "layer2.0.conv1", "linear"),
    "resnet18": ("layer2.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2"),
    "head of fastai": ("layer1.0.conv1", "linear.4"),
    "yolov5": ("model.1.conv", "model.2.cv1.conv", "model.2.cv2.conv", "model.9.m.0"),
}


@pytest.mark.parametrize("name", KEPT)
def test_outputs_with_layers_kept_in_float_are_those_of_onnx_runtime(name: str) -> None:
    done = executed(name).keeping(KEPT[name])
    assert len(done.placement.values) < len(executed(name).placement.values)
    simulated = Simulator(done.placement, done.grids).run(done.images)
    assert relative_error(run(done.onnx(), done.images), simulated) < 1e-3
    assert 0 < relative_error(simulated, run_float(done.placement.graph, done.images)) < 0.1


@pytest.mark.parametrize("name", ["resnet18", "yolov5"])
def test_a_network_with_all_layers_kept_in_float_is_the_one_in_float(name: str) -> None:
    done = executed(name)
    done = done.keeping(layer_name(node) for node in done.placement.graph.weighted())
    assert done.placement.values == []
    simulated = Simulator(done.placement, done.grids).run(done.images)
    assert torch.equal(simulated, run_float(done.placement.graph, done.images))
