"""The paper's tables with and without what they take."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.quantization import paper
from tests.support.tasks import Task


def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> list[list[str]]:
    """Return the cells of all rows of the tables."""
    arguments = ["paper", "--rows", str(tmp_path / "rows"), "--out", str(tmp_path / "page.md"), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    paper.main()
    lines = (tmp_path / "page.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def test_what_is_not_at_hand_has_empty_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = page(monkeypatch, tmp_path)
    assert ["ResNet-18", "paper", "69.37", "58", "3069", "", "", "", "", ""] in rows
    assert ["ResNet-50", "brecq", *[""] * 8] in rows
    assert ["YOLOv5m", "6", "paper", "44.37", "36", "", "", "", "", ""] in rows
    assert ["sensitivity", "75.67", "", ""] in rows


@pytest.mark.slow
def test_what_is_at_hand_is_measured_beside_the_papers_figures(
    task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    shutil.copy(task.first, tmp_path / "weights" / "resnet50-0123.pth")
    images = tmp_path / "images"
    images.mkdir()
    (images / "train").symlink_to(task.calibration)
    (images / "val").symlink_to(task.test)
    places = ("--weights", str(tmp_path / "weights"), "--imagenet", str(images))
    rows = page(monkeypatch, tmp_path, *places, "--tables", "1", "3", "--methods", "rtn", "paper")
    full, rtn, ours = (row for row in rows if row[0] == "ResNet-50")
    assert (full[:5], rtn[:5]) == (["ResNet-50", "full precision", "76.13", "", ""], ["ResNet-50", "rtn", *[""] * 3])
    assert ours[:5] == ["ResNet-50", "paper", "75.77", "80", "3683"]
    assert float(full[5]) - float(ours[5]) == pytest.approx(float(ours[6]), abs=0.011)
    assert all(float(cell) > 0 for cell in (full[5], rtn[7], ours[8]))
    orders = {row[0]: row[1:] for row in rows if row[0] in paper.ORDERS}
    assert {order: cells[0] for order, cells in orders.items()} == {
        order: f"{top1:.2f}" for order, top1 in paper.TABLE_3.items()
    }
    assert orders["sensitivity"][1] == ours[5]  # the recipe's own order
    assert all(float(cells[1]) > 0 for cells in orders.values())
