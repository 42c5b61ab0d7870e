"""What stays in the drop folder."""

from __future__ import annotations

from pathlib import Path

from service.intake.drop_folder import DropFolder
from service.intake.unclaimed import Unclaimed, find_unclaimed


def test_everything_that_is_not_taken_is_found_with_the_reason(tmp_path: Path) -> None:
    root = tmp_path / "drop"
    for name, text in (
        ("best.pt", "of no model"),
        ("resnet/best.pt", "in the folder of no model"),
        ("a/good.pt", "by its name"),
        ("a/weights", "\x80 by its first bytes"),
        ("a/README.txt", "how to use"),
        ("a/exp/weights/best.pt", "taken"),
        ("b/exp/1.pt", "which one"),
        ("b/exp/2.pt", "which one"),
        ("b/.incoming", "hidden"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("latin-1"))
    found = find_unclaimed(DropFolder(root, ["a", "b", "resnet18"], 1 << 20))
    assert [(str(entry.path.relative_to(root)), entry.kind) for entry in found] == [
        ("a/README.txt", "file"),
        ("b/exp", "folder"),
        ("best.pt", "file"),
        ("resnet", "folder"),
    ]
    reasons = [entry.reason for entry in found]
    assert reasons[0] == "it is no checkpoint, by its name and its first bytes; move it out of the drop folder"
    assert reasons[1].startswith("exp has 2 checkpoints and none is named best")
    assert reasons[2] == "drop it into a model's folder: a, b, resnet18"
    assert reasons[3] == (
        "no model of the config has this name; did you mean 'resnet18'? drop into the folder of a model: a, b, resnet18"
    )


def test_an_entry_as_json_starts_with_the_name_of_the_drop_folder(tmp_path: Path) -> None:
    entry = Unclaimed(tmp_path / "drop" / "m" / "a.txt", "file", "why")
    assert entry.to_dict(tmp_path / "drop", 5.0) == {
        "path": "drop/m/a.txt",
        "kind": "file",
        "reason": "why",
        "since": 5.0,
    }
