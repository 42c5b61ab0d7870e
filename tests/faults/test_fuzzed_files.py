"""Some hundreds of inputs for each kind of file: each is read, or refused by an error of the class that is promised.

`python -m benchmarks.faults --only fuzz` tries thousands. Inputs that once were faults are in tests/faults/corpus/.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.artifact import write_small_artifact
from benchmarks.fuzz.drive import fuzz, fuzz_apart
from benchmarks.fuzz.files import COUNTS, file_targets
from benchmarks.fuzz.target import Case, Target
from edged.errors import ConfigError
from edged.spec import Levels, Method, QuantSpec

CORPUS = Path(__file__).parent / "corpus"
INPUTS = {"manifest": 100, "weights": 100, "report": 100}
MOST = 200  # of others


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "small"
    write_small_artifact(folder)
    return folder


@pytest.fixture(scope="module")
def targets(artifact: Path) -> dict[str, Target]:
    return file_targets(artifact)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", COUNTS)
def test_bad_input_ends_in_the_error_that_is_promised(name: str, targets: dict[str, Target], tmp_path: Path) -> None:
    target = targets[name]
    target.prepare(tmp_path)

    @settings(
        max_examples=INPUTS.get(name, MOST),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def read(case: Case) -> None:
        target.attempt(case, tmp_path)

    read()


@pytest.mark.slow  # as above, on weights with power levels
@pytest.mark.parametrize("name", ["manifest", "weights"])
def test_bad_input_of_power_levels_ends_in_the_error_that_is_promised(name: str, tmp_path: Path) -> None:
    spec = QuantSpec(method=Method.REQUANT, bits=3, levels=Levels.POWER, propagation=0.0)
    write_small_artifact(tmp_path / "artifact", spec)
    target = file_targets(tmp_path / "artifact")[name]
    (tmp_path / "fuzzed").mkdir()
    target.prepare(tmp_path / "fuzzed")

    @settings(
        max_examples=MOST, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(target.cases)
    def read(case: Case) -> None:
        target.attempt(case, tmp_path / "fuzzed")

    read()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_once_was_a_fault_is_none_any_more(path: Path, targets: dict[str, Target], tmp_path: Path) -> None:
    """A file of the corpus has the bytes of each file of an input as Latin-1."""
    target = targets[path.parent.name]
    files = {name: text.encode("latin-1") for name, text in json.loads(path.read_text()).items()}
    target.prepare(tmp_path)
    target.attempt(Case(files), tmp_path)


def test_the_fuzzer_finds_a_fault(tmp_path: Path) -> None:
    """The control: code that knows nothing of bad input fails in two ways, and a long message counts as a fault."""

    def read(folder: Path) -> None:
        text = (folder / "x").read_text()  # UnicodeDecodeError
        if len(text) > 2:
            raise ConfigError("x" * 2000)
        _ = 1 / len(text)  # ZeroDivisionError

    contents = st.binary(max_size=4).map(lambda data: Case({"x": data}))
    row = fuzz(Target("control", "control", contents, read, (ConfigError,)), 200, 1, tmp_path)
    assert row["inputs"] > 100
    assert row["crashes"] > 20
    assert row["refused"] == 0
    kinds = {fault.strip("'\"").split(":")[0] for fault in row["faults"]}
    assert kinds <= {"UnicodeDecodeError", "ZeroDivisionError", "AssertionError"}
    assert kinds


def test_a_process_that_fails_or_hangs_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = fuzz_apart("manifest", 1, 0, tmp_path / "none")
    assert (row["crashes"], row["inputs"]) == (1, 0)
    assert row["faults"][0].startswith("the process ended with status 1: ")
    monkeypatch.setattr("benchmarks.fuzz.drive.PATIENCE_S", 0.0)
    assert fuzz_apart("manifest", 1, 0, tmp_path)["faults"] == ["the process did not end within 0 s"]
