"""Which file of a whole training run is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.intake.run_folder import NOTE, Choice, choose, note_taken, scan_run

YOLO = [
    "weights/best.pt",
    "weights/last.pt",
    "results.csv",
    "opt.yaml",
    "data.yaml",
    "labels.jpg",
    "events.out.tfevents",
]


def run_of(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def chosen(folder: Path, names: list[str]) -> Choice:
    return choose(scan_run("m", run_of(folder / "exp", names)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (YOLO, "weights/best.pt"),
        (["weights/last.pt", "results.csv"], "weights/last.pt"),
        (["lightning_logs/version_0/checkpoints/epoch=3-step=80.ckpt", "hparams.yaml"], None),  # below
        (["model_best.pth.tar", "checkpoint.pth.tar"], "model_best.pth.tar"),
        (["best.pt", "best_ema.pt", "last.pt"], "best.pt"),
        (
            ["model.safetensors", "optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"],
            "model.safetensors",
        ),
        (
            ["pytorch_model.bin", "optimizer.bin", "scheduler.bin", "sampler.bin", "random_states_0.pkl"],  # accelerate
            "pytorch_model.bin",
        ),
        (["pytorch_model.bin", "model.safetensors", "config.json"], "model.safetensors"),  # transformers
    ],
)
def test_the_best_one_or_the_only_one_is_taken(tmp_path: Path, names: list[str], expected: str | None) -> None:
    expected = expected or names[0]
    assert chosen(tmp_path, names).name == expected


def test_where_nothing_says_which_one_none_is_taken(tmp_path: Path) -> None:
    choice = chosen(tmp_path, ["epoch_1.pth", "epoch_2.pth", "epoch_3.pth", "epoch_4.pth", "log.txt"])
    assert choice == Choice(
        None,
        "exp has 4 checkpoints and none is named best (epoch_1.pth, epoch_2.pth, epoch_3.pth, ...);"
        " move the one to take out of the folder",
    )


def test_of_two_runs_in_one_folder_none_is_taken(tmp_path: Path) -> None:
    choice = chosen(tmp_path, ["a/best.pt", "b/best.pt"])
    assert (choice.name, "2 checkpoints named best (a/best.pt, b/best.pt)" in choice.reason) == (None, True)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    assert chosen(tmp_path, ["readme.txt", "plots/loss.png"]) == Choice(
        None, f"it has no checkpoint; drop one into {tmp_path.name}/"
    )


def test_the_next_best_one_is_not_taken_after_it(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "exp", YOLO)
    run = scan_run("m", folder)
    note_taken(folder, "weights/best.pt", run.files["weights/best.pt"], "ab" * 32)
    for _ in range(2):  # before its removal, as after a crash, and after it
        choice = choose(scan_run("m", folder))
        assert choice.name is None
        assert choice.reason.startswith("weights/best.pt of it was taken; the rest is left where it is")
        (folder / "weights/best.pt").unlink(missing_ok=True)
    run_of(folder, ["weights/best.pt"])  # the run goes on, and is copied again
    (folder / "weights/best.pt").write_text("better than before")
    assert choose(scan_run("m", folder)).name == "weights/best.pt"


@pytest.mark.parametrize("note", ["no JSON", "[]", "{}", '{"file": 3}'])
def test_a_note_that_makes_no_sense_is_ignored(tmp_path: Path, note: str) -> None:
    folder = run_of(tmp_path / "exp", YOLO)
    (folder / NOTE).write_text(note)
    assert choose(scan_run("m", folder)).name == "weights/best.pt"


def test_every_change_inside_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "exp", YOLO)
    seen = [scan_run("m", folder).fingerprint]
    (folder / "weights/last.pt").write_text("more")
    seen.append(scan_run("m", folder).fingerprint)
    (folder / "weights/epoch1.pt").write_text("new")
    seen.append(scan_run("m", folder).fingerprint)
    (folder / "weights/epoch1.pt").unlink()
    seen.append(scan_run("m", folder).fingerprint)
    assert len(set(seen)) == 4 or seen[1] == seen[3]
    assert seen[0] != seen[1] != seen[2] != seen[3]


def test_links_and_unfinished_files_are_left_out(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "exp", ["a.pt", "b.pt.part", ".hidden/c.pt", "a.pt.sha256"])
    (folder / "best.pt").symlink_to(folder / "a.pt")
    (folder / "loop").symlink_to(folder)
    run = scan_run("m", folder)
    assert (list(run.files), run.sidecars) == (["a.pt"], {"a.pt.sha256"})


def test_a_folder_of_very_many_files_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.intake.run_folder._MAX_FILES", 3)
    choice = chosen(tmp_path, ["best.pt", *(f"{number}.txt" for number in range(5))])
    assert choice == Choice(None, "it has more than 3 files; move its checkpoint out of it")
