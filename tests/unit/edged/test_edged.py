"""`from edged import ...` as a user of the library writes it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edged
from tests.support.tasks import Task

DOCS = Path(__file__).parents[3] / "docs" / "library.md"


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    code = "import edged, sys; edged.QuantSpec(); print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_every_public_name_is_listed_loads_and_is_documented() -> None:
    assert set(edged.__all__) <= set(dir(edged))
    for name in edged.__all__:
        assert getattr(edged, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = edged.quantise


def test_the_example_of_the_documentation_runs(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    shutil.copy(task.first, tmp_path / "model.pt")
    (tmp_path / "calibration").symlink_to(task.calibration)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, DOCS, "exec"), names)  # noqa: S102 - our own page
    assert re.fullmatch(r"cifar_resnet20 8\nagreement with full precision: \d+\.\d %\n", capsys.readouterr().out)
    inputs, labels = task.digits.tensors(slice(1500, None))
    assert (names["model"](inputs).argmax(1) == labels).float().mean() > 0.9
