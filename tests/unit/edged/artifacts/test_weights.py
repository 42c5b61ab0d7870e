import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from edged.artifacts.weights import decoded_state, load_weights, save_weights, stored_bytes
from edged.errors import ArtifactError
from edged.models.layers import quantizable_layers
from edged.models.torchvision_shim import import_torchvision
from edged.quant.grid import minmax_grid
from edged.quant.power_grid import PowerWeight
from edged.spec import Scheme
from tests.support.artifact_samples import power_weight, quantized

REST = {
    "bn.weight": torch.tensor([1.5, -0.25]),
    "bn.num_batches_tracked": torch.tensor(7),
    "fc.bias": torch.arange(6.0)[::2],  # not contiguous
}


@given(
    bits=st.integers(2, 8),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, bits: int, shape: tuple, seed: int) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    weight = quantized(shape, bits, seed)
    save_weights(path, {"conv.weight": weight}, REST)
    loaded, rest = load_weights(path)
    read = loaded["conv.weight"]
    assert (read.bits, read.shape) == (bits, shape)
    for part in ("codes", "scale", "zero_point"):
        assert torch.equal(getattr(read, part), getattr(weight, part))
    assert rest.keys() == REST.keys()
    assert all(torch.equal(rest[name], REST[name]) and rest[name].dtype == REST[name].dtype for name in REST)


def test_decoded_state_has_the_bits_that_were_evaluated(tmp_path: Path) -> None:
    weights = {f"layer{bits}.weight": quantized((8, 3, 3, 3), bits, bits) for bits in range(2, 9)}
    save_weights(tmp_path / "w", weights, REST)
    state = decoded_state(tmp_path / "w")
    assert state.keys() == weights.keys() | REST.keys()
    for name, weight in weights.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name].view(torch.int32), weight.decode().view(torch.int32))


def test_the_layout_on_disk_is_as_documented(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", {"a.weight": quantized((4, 6), 3)}, {})
    with safe_open(tmp_path / "w", framework="pt") as file:
        assert set(file.keys()) == {"a.weight.codes", "a.weight.scale", "a.weight.zero_point"}
        assert file.get_tensor("a.weight.codes").shape == (9,)  # 24 codes of 3 bits
        assert json.loads(file.metadata()["edged"]) == {"a.weight": {"bits": 3, "shape": [4, 6]}}


@given(
    bits=st.integers(2, 8),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_power_levels_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, bits: int, shape: tuple, seed: int
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    weight = power_weight(shape, bits, seed)
    save_weights(path, {"conv.weight": weight, "uniform.weight": quantized(shape, bits, seed)}, REST)
    loaded, rest = load_weights(path)
    read = loaded["conv.weight"]
    assert isinstance(read, PowerWeight)
    assert (read.bits, read.shape, loaded["uniform.weight"].is_uniform) == (bits, shape, True)
    for part in ("codes", "scale", "zero_point", "exponent"):
        assert torch.equal(getattr(read, part), getattr(weight, part))
    assert rest.keys() == REST.keys()
    state = decoded_state(path)
    assert torch.equal(state["conv.weight"].view(torch.int32), weight.decode().view(torch.int32))
    assert state.keys() == {"conv.weight", "uniform.weight", *REST}


def test_power_levels_take_a_byte_for_each_row(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", {"a.weight": power_weight((4, 6), 3)}, {})
    with safe_open(tmp_path / "w", framework="pt") as file:
        # An edged that knows uniform levels only looks for a.weight.scale, and refuses the file.
        assert set(file.keys()) == {"a.weight.codes", "a.weight.step", "a.weight.zero_point", "a.weight.exponent"}
        assert (file.get_tensor("a.weight.exponent").dtype, file.get_tensor("a.weight.exponent").shape) == (
            torch.uint8,
            (4,),
        )
        layout = json.loads(file.metadata()["edged"])
        assert layout == {"a.weight": {"bits": 3, "shape": [4, 6], "levels": "power"}}


def test_four_bits_take_little_more_than_an_eighth_of_float32(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", {"a": quantized((512, 4608), 4)}, {})
    assert (tmp_path / "w").stat().st_size / (512 * 4608 * 4) < 0.127


def test_tensors_that_share_memory_are_written_separately(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    save_weights(tmp_path / "w", {}, {"a": shared, "b": shared})
    assert torch.equal(load_weights(tmp_path / "w")[1]["b"], shared)


@pytest.mark.parametrize("name", ["a", "a.codes", "a.scale", "a.zero_point"])
def test_a_name_used_twice_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=f"tensor '{name}' is both quantized and kept"):
        save_weights(tmp_path / "w", {"a": quantized((2, 2), 4)}, {name: torch.zeros(1)})


GOOD = {"a.codes": torch.zeros(4, dtype=torch.uint8), "a.scale": torch.ones(2)}
GOOD |= {"a.zero_point": torch.zeros(2, dtype=torch.uint8)}
LAYOUT = {"a": {"bits": 4, "shape": [2, 4]}}


@pytest.mark.parametrize(
    ("tensors", "layout", "message"),
    [
        ({}, {"a": {"bits": 4, "shape": [4, 4]}}, "16 codes of 4 bits take 8 bytes"),
        ({}, {"a": {"bits": 9, "shape": [2, 4]}}, "bits has value 9"),
        ({}, {"a": {"bits": 4, "shape": [-2, -4]}}, "has 2 scales"),
        ({}, {"a": {"bits": 4, "shape": [2, 10**12]}}, "codes of 4 bits take"),
        ({}, {"a": {"bits": 4}}, "shape"),
        ({}, {"a": 4}, "not subscriptable"),
        ({}, {"b": {"bits": 4, "shape": [2, 4]}}, "b.codes"),
        ({}, [], "list"),
        ({"a.scale": torch.ones(3)}, LAYOUT, "grid of 'a' is damaged"),
        ({"a.scale": torch.ones(2).half()}, LAYOUT, "grid of 'a' is damaged"),
        ({"a.zero_point": torch.ones(2)}, LAYOUT, "grid of 'a' is damaged"),
    ],
)
def test_an_inconsistent_file_is_rejected(
    tmp_path: Path, tensors: dict[str, torch.Tensor], layout: object, message: str
) -> None:
    path = tmp_path / "w"
    save_file(GOOD | tensors, path, metadata={"edged": json.dumps(layout)})
    for read in (load_weights, decoded_state):
        with pytest.raises(ArtifactError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


POWER = {"a": {"bits": 4, "shape": [2, 4], "levels": "power"}}
GOOD_POWER = {
    "a.codes": torch.zeros(4, dtype=torch.uint8),
    "a.step": torch.ones(2),
    "a.zero_point": torch.tensor([0, 15], dtype=torch.uint8),
    "a.exponent": torch.tensor([16, 48], dtype=torch.uint8),
}


@pytest.mark.parametrize(
    ("tensors", "layout", "message"),
    [
        ({"a.exponent": torch.tensor([16, 49], dtype=torch.uint8)}, POWER, "levels of 'a' are damaged"),
        ({"a.exponent": torch.tensor([15, 16], dtype=torch.uint8)}, POWER, "levels of 'a' are damaged"),
        ({"a.exponent": torch.tensor([16], dtype=torch.uint8)}, POWER, "levels of 'a' are damaged"),
        ({"a.exponent": torch.tensor([16, 16], dtype=torch.int16)}, POWER, "levels of 'a' are damaged"),
        ({"a.zero_point": torch.tensor([0, 16], dtype=torch.uint8)}, POWER, "levels of 'a' are damaged"),
        ({"a.step": torch.tensor([1.0, float("inf")])}, POWER, "levels of 'a' are damaged"),
        ({"a.step": torch.tensor([1.0, float("nan")])}, POWER, "levels of 'a' are damaged"),
        ({"a.step": torch.tensor([0.0, 1.0])}, POWER, "levels of 'a' are damaged"),
        ({"a.step": torch.ones(2).double()}, POWER, "grid of 'a' is damaged"),
        ({"a.step": torch.ones(3)}, POWER, "grid of 'a' is damaged"),
        ({}, {"a": {**POWER["a"], "bits": 9}}, "bits has value 9"),
        ({}, {"a": {**POWER["a"], "levels": "cubic"}}, "levels 'cubic'; this edged reads uniform and power, a newer"),
        ({}, {"a": {**POWER["a"], "levels": ["power"]}}, r"levels \['power'\]"),
        ({}, {"a": {**POWER["a"], "levels": None}}, "levels None"),
        ({}, {"a": {**POWER["a"], "levels": "uniform"}}, "a.scale"),
        ({}, {"a": {"bits": 4, "shape": [2, 4]}}, "a.scale"),
    ],
)
def test_inconsistent_power_levels_are_rejected(
    tmp_path: Path, tensors: dict[str, torch.Tensor], layout: object, message: str
) -> None:
    path = tmp_path / "w"
    save_file(GOOD_POWER, path, metadata={"edged": json.dumps(POWER)})
    assert load_weights(path)[0]["a"].decode().shape == (2, 4)
    save_file(GOOD_POWER | tensors, path, metadata={"edged": json.dumps(layout)})
    for read in (load_weights, decoded_state):
        with pytest.raises(ArtifactError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), tail=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_rejected_or_leaves_weights_that_decode(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int, tail: bool
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, {"a": power_weight((3, 2, 3, 3), 3)}, {})
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    first, last = (header, len(data)) if tail else (0, header)
    data[first + int(place * (last - first))] = value
    path.write_bytes(bytes(data))
    try:
        quantized, _ = load_weights(path)
    except ArtifactError:
        return
    for weight in quantized.values():
        assert bool(weight.decode().isfinite().all())


def test_a_file_of_another_kind_is_rejected(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "plain")
    (tmp_path / "noise").write_bytes(b"\xff" * 100)
    (tmp_path / "empty").touch()
    for name in ("plain", "noise", "empty", "missing"):
        with pytest.raises(ArtifactError, match=f"cannot read {tmp_path / name}"):
            load_weights(tmp_path / name)


@pytest.mark.parametrize("keep", [1, 9, 200, 400])
def test_a_truncated_file_is_rejected(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w"
    save_weights(path, {"a": quantized((4, 64), 4)}, REST)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="cannot read"):
        load_weights(path)


def test_a_resnet18_at_four_bits_takes_a_seventh_of_its_bytes(tmp_path: Path):
    torch.manual_seed(0)
    model = import_torchvision().models.resnet18()
    codes = {}
    for name, layer in quantizable_layers(model).items():
        W = layer.weight.detach().flatten(1)
        grid = minmax_grid(W, 4, Scheme.ASYMMETRIC)
        codes[f"{name}.weight"] = grid.quantized(grid.encode(W), tuple(layer.weight.shape))
    state = model.state_dict()
    save_weights(tmp_path / "weights", codes, {k: v for k, v in state.items() if k not in codes})
    full = sum(tensor.nbytes for tensor in state.values())
    assert (tmp_path / "weights").stat().st_size <= 0.14 * full


@given(
    widths=st.lists(st.integers(2, 8), min_size=1, max_size=6),
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_the_size_of_the_file_is_known_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, widths: list[int], rows: int, columns: int, name: str
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    weights = {f"{name}{index}": quantized((rows, columns), bits) for index, bits in enumerate(widths)}
    save_weights(path, weights, REST)
    state = {**REST, **{key: weight.decode() for key, weight in weights.items()}}
    assert stored_bytes(state, {key: weight.bits for key, weight in weights.items()}) == path.stat().st_size
