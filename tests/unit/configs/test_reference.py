"""The configuration reference is what its program builds, and the annotated config is what the program reads."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from edged.spec import recipe
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "configs" / "reference.py"))


def test_the_page_is_up_to_date(reference: dict[str, Any]) -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference["text"](), "run: python configs/reference.py"


def test_every_key_has_a_row_with_values_default_and_meaning(reference: dict[str, Any]) -> None:
    page = reference["text"]()
    assert "| `max_batch` | whole number, 1 to 128 | `1` | Largest number of images computed together;" in page
    assert (
        "| `dir` | path of a folder, a data.yaml or a .txt list that exists | required | A folder of at least 32 images"
        in page
    )
    assert "| `std` | list: number, above 0 | | See `mean`. |" in page
    assert "| `max_bytes` | size | `256MiB` |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    values = list(reference["all_names"](reference["Config"]))
    sections = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(rows) + len(sections) - 1 == len(values)
    assert all(len(line.replace("\\|", "").split(" |")) == 5 for line in rows)


def test_a_comment_belongs_to_the_key_below_it(reference: dict[str, Any]) -> None:
    text = """\
# Where it is: state_dir is
# a folder.
state_dir: /var/lib/edged

# Not of a key.

models:
    # Its name.
  - name: a
    # Kept.
    keep: 3
    gates:
      # In points.
      # max_drop: 2.0
      min_agreement: 50.0
"""
    assert reference["comments"](text) == {
        "state_dir": "Where it is: state_dir is a folder.",
        "models": "",
        "models[].name": "Its name.",
        "models[].keep": "Kept.",
        "models[].gates": "",
        "models[].gates.max_drop": "In points.",
        "models[].gates.min_agreement": "",
    }


def test_the_annotated_config_shows_the_values_of_the_usual_recipe() -> None:
    """The keys are commented out there, because a recipe sets them."""
    lines = (ROOT / "configs" / "edged.yaml").read_text().split("    quantization:\n")[1].split("\n\n")[0].splitlines()
    shown = yaml.safe_load("\n".join(line.split("# ", 1)[1] for line in lines if _is_key(line)))
    usual = recipe("balanced").to_dict()
    assert shown.keys() == usual.keys() - {"activation_bits"}  # whose default in a config is not that of a recipe
    assert {key: value for key, value in shown.items() if usual[key] is not None} == {
        key: value for key, value in usual.items() if value is not None
    }


def _is_key(line: str) -> bool:
    name = line.strip().removeprefix("# ").partition(": ")[0]
    return line.strip().startswith("# ") and name in recipe("balanced").to_dict()


def test_the_shortest_file_of_the_page_is_valid(reference: dict[str, Any], tmp_path: Path) -> None:
    from service.config.load import load_config

    text = reference["INTRODUCTION"].split("```yaml\n")[1].split("```")[0]
    (tmp_path / "images").mkdir()
    (tmp_path / "edged.yaml").write_text(text.replace("/srv/calibration/classifier", "images"))
    assert [model.name for model in load_config(tmp_path / "edged.yaml").models] == ["classifier"]
