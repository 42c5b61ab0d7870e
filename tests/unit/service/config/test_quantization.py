"""Each bound of QuantSpec is written once: the library, the config file and the command line give one verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edged.errors import UsageError
from edged.spec import AUTO, MAX_WHOLE, Levels, Method, QuantSpec, bounds_of
from service.config.load import InvalidConfigError, load_config
from tests.support.commands import execute

BOUNDS = bounds_of(QuantSpec)
OPTIONS = ("bits", "beam", "damp_ratio", "propagation", "seed")  # the bounded fields that `edged quantize` offers


def values(name: str) -> list[float]:
    """Return numbers inside, at and outside the bounds of a field."""
    bounds = BOUNDS[name]
    step = 1 if bounds.whole else 0.25
    top = [bounds.most, bounds.most + step] if bounds.most < MAX_WHOLE else [1000 * step]
    return [bounds.least - step, bounds.least, bounds.least + step, *top]


def companions(name: str) -> dict[str, str]:
    """Return the settings that a field needs beside it."""
    return {"bits": "auto"} if name in ("size_limit", "max_drop") else {}


def accepted_by_spec(name: str, value: float) -> bool:
    try:
        QuantSpec.from_dict({**companions(name), name: value})
    except UsageError:
        return False
    return True


def accepted_by_config(name: str, value: float, folder: Path) -> bool:
    (folder / "images").mkdir(exist_ok=True)
    path = folder / "edged.yaml"
    quantization = json.dumps({**companions(name), name: value})
    path.write_text(f"models: [{{name: m, calibration: {{dir: images}}, quantization: {quantization}}}]\n")
    try:
        load_config(path)
    except InvalidConfigError:
        return False
    return True


def accepted_by_command(name: str, value: float, folder: Path) -> bool:
    option = f"--{name.replace('_', '-')}={value}"
    missing = ["--calib", str(folder), "--out", str(folder / "out"), "--cache", str(folder / "cache")]
    try:
        code = execute("quantize", folder / "missing.pt", *missing, option)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code in (2, 3)  # 3: the checkpoint is missing, which is found out once the options are accepted
    return code == 3


def test_every_number_of_a_spec_has_bounds() -> None:
    numbers = {name for name, value in QuantSpec().to_dict().items() if type(value) in (int, float)}
    assert set(BOUNDS) == numbers | {
        *("first_bits", "last_bits", "small_bits", "activation_bits", "size_limit", "max_drop")
    }


@pytest.mark.parametrize("name", BOUNDS)
def test_library_and_config_accept_the_same_numbers(name: str, tmp_path: Path) -> None:
    verdicts = {value: accepted_by_spec(name, value) for value in values(name)}
    assert set(verdicts.values()) == {True, False}
    assert {value: accepted_by_config(name, value, tmp_path) for value in verdicts} == verdicts


@pytest.mark.parametrize("name", OPTIONS)
def test_the_command_line_accepts_the_same_numbers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values(name):
        assert accepted_by_command(name, value, tmp_path) == accepted_by_spec(name, value), capsys.readouterr().err


def quantization_of(folder: Path, text: str) -> QuantSpec:
    (folder / "images").mkdir(exist_ok=True)
    path = folder / "edged.yaml"
    path.write_text(f"models: [{{name: m, calibration: {{dir: images}}, quantization: {{{text}}}}}]\n")
    return load_config(path).models[0].quantization.to_spec()


def test_bits_of_each_layer_are_chosen_within_a_size_with_a_unit_or_a_drop(tmp_path: Path) -> None:
    spec = quantization_of(tmp_path, "bits: auto, size_limit: 3MiB")
    assert (spec.bits, spec.size_limit, spec.max_drop) == (AUTO, 3 << 20, None)
    spec = quantization_of(tmp_path, "bits: auto, max_drop: 0.3, size_limit: 2000")
    assert (spec.bits, spec.size_limit, spec.max_drop) == (AUTO, 2000, 0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits: auto", "bits is auto without a limit; give size_limit or max_drop, too"),
        ("size_limit: 3MiB", "size_limit is for bits auto, and bits has value 4"),
        ("bits: auto, size_limit: 3 parsecs", "write bytes as a number or for example 800MiB"),
        ("bits: most", "write auto, 2 to 8"),
        ("levels: power", "levels has value power, and method fastobq; give method requant, too"),
        ("method: requant, levels: power, activation_bits: 8", "and activation_bits 8; leave activation_bits out"),
    ],
)
def test_settings_that_mean_nothing_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        quantization_of(tmp_path, text)


def test_power_levels_leave_activations_in_float(tmp_path: Path) -> None:
    spec = quantization_of(tmp_path, "method: requant, levels: power, bits: 3")
    assert (spec.method, spec.levels, spec.quantizes_activations) == (Method.REQUANT, Levels.POWER, False)


def test_digests_of_models_without_limits_stay_as_they_were(tmp_path: Path) -> None:
    """A new key at its default must not quantize every model of a fleet again."""
    digests = set()
    for text in ("bits: 4", "", "bits: auto, size_limit: 3MiB", "bits: auto, max_drop: 1"):
        quantization_of(tmp_path, text)
        digests.add(load_config(tmp_path / "edged.yaml").models[0].digest())
    assert len(digests) == 3


def test_damping_has_no_upper_bound_but_infinity() -> None:
    assert QuantSpec(damp_ratio=50.0).damp_ratio == 50
    with pytest.raises(UsageError, match="damp_ratio has value inf"):
        QuantSpec(damp_ratio=math.inf)
