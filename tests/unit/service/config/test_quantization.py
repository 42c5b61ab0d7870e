"""Each bound of QuantSpec is written once: the library, the config file and the command line give one verdict."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edged.errors import UsageError
from edged.spec import MAX_WHOLE, QuantSpec, bounds_of
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


def accepted_by_spec(name: str, value: float) -> bool:
    try:
        QuantSpec.from_dict({name: value})
    except UsageError:
        return False
    return True


def accepted_by_config(name: str, value: float, folder: Path) -> bool:
    (folder / "images").mkdir(exist_ok=True)
    path = folder / "edged.yaml"
    path.write_text(f"models: [{{name: m, calibration: {{dir: images}}, quantization: {{{name}: {value}}}}}]\n")
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
    assert set(BOUNDS) == numbers | {"first_bits", "last_bits", "small_bits", "activation_bits"}


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


def test_damping_has_no_upper_bound_but_infinity() -> None:
    assert QuantSpec(damp_ratio=50.0).damp_ratio == 50
    with pytest.raises(UsageError, match="damp_ratio has value inf"):
        QuantSpec(damp_ratio=math.inf)
