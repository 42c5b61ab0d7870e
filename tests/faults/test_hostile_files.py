"""A thousand hostile checkpoints: each is refused or harmless, none runs code, and memory stays in bounds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile.corpus import Hostile, corpus
from benchmarks.hostile.detectors import VALUE, VALUES, detector
from benchmarks.hostile.files import Reading, read_all, summary
from benchmarks.hostile.mutations import mutations, valid_files
from benchmarks.hostile.spelling import as_zip
from edged.models.inspection import inspect_checkpoint

SOME = 25  # every so many files are read in the fast tests
CONTROL = """
import json, pickle
from benchmarks.hostile.reader import Watch
from benchmarks.hostile.spelling import PROTO, call
watch = Watch()
watch.active = True
pickle.loads(PROTO + call("posix.system", "true") + b".")
watch.active = False
print(json.dumps(watch.events))
"""


def faults(readings: Iterator[Reading]) -> list[str]:
    return [f"{each.file.kind}, {each.file.name}: {each.fault}" for each in readings if each.fault is not None]


def test_some_of_each_kind_are_refused_or_harmless(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    some = itertools.islice(corpus(str(canary), drawn=4), 0, None, SOME)
    assert faults(read_all(some, tmp_path)) == []
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_are_refused_or_harmless(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    readings = list(read_all(corpus(str(canary)), tmp_path))
    assert faults(iter(readings)) == []
    assert not canary.exists()
    assert len(readings) > 1000


def test_the_corpus_has_a_thousand_different_files_of_all_kinds() -> None:
    files = list(corpus("canary", drawn=1))
    kinds = Counter(file.kind for file in files)
    assert len(files) >= 1000
    assert len(kinds) == 14
    assert len({(file.kind, file.name) for file in files}) == len(files)
    assert len({file.content for file in files}) > 0.97 * len(files)


def test_the_watch_sees_code_that_runs() -> None:
    """The control: what loads a pickle with the standard library is caught in the act."""
    done = subprocess.run([sys.executable, "-c", CONTROL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = [event.split()[0] for event in json.loads(done.stdout)]
    assert seen == ["pickle.find_class", "os.system"]


def test_a_detector_and_files_without_damage_are_read(tmp_path: Path) -> None:
    """So what is refused is refused for what was changed."""
    (tmp_path / "m.pt").write_bytes(as_zip(detector(), VALUES, VALUE))
    assert inspect_checkpoint(tmp_path / "m.pt").to_dict()["architecture"] == "yolov5"
    for content in valid_files().values():
        (tmp_path / "m.pt").write_bytes(content)
        assert inspect_checkpoint(tmp_path / "m.pt").to_dict()["architecture"] == "cifar_resnet20"


def test_a_file_that_kills_its_reader_is_a_fault_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.hostile.files.PATIENCE_S", 0.0)
    file = Hostile("kind", "name", valid_files()["zip"])
    (hung,) = read_all([file], tmp_path)
    assert (hung.outcome, hung.fault) == ("hung", "hung: no answer within 0 s")
    monkeypatch.setattr("benchmarks.hostile.files.PATIENCE_S", 300.0)
    first, second = read_all([file, Hostile("kind", "none", b"no checkpoint")], tmp_path)
    assert (first.outcome, first.fault) == ("accepted", "accepted")
    assert (second.outcome, second.fault) == ("checkpoint", None)
    (row,) = summary([first, second])
    assert (row["files"], row["refused"], row["faults"]) == (2, 1, ["name: accepted"])


def test_random_damage_is_the_same_for_the_same_seed() -> None:
    assert list(mutations(2, seed=5)) == list(mutations(2, seed=5))
    assert list(mutations(1, seed=5)) != list(mutations(1, seed=6))
