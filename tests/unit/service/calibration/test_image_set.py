"""edged calib add, list, verify, stats and purge on a folder of images of a configured model."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edged.calibration.dataset import build_cache
from edged.calibration.images import decode, normalize
from edged.spec import InputSpec
from service.calibration.image_set import calibration_set
from service.config.load import load_config
from service.storage.paths import Paths
from tests.support import scenes
from tests.support.commands import execute
from tests.support.odd_images import damaged_exif, write_odd_images

SIDE = 16
SPEC = InputSpec(SIDE, SIDE)


class Device:
    """A config with one model, its images, and the commands."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        self.config = folder / "edged.yaml"
        self.capsys = capsys
        self.configure("input: {size: 16, resize: 16}")

    def configure(self, settings: str) -> None:
        self.config.write_text(
            f"state_dir: state\nmodels:\n  - name: m\n    calibration: {{dir: images}}\n    {settings}"
        )

    def run(self, *arguments: object) -> tuple[int, dict[str, Any], str]:
        code = execute("calib", *arguments, "--config", self.config, "--json")
        told = self.capsys.readouterr()
        return code, json.loads(told.out), told.err

    def text(self, *arguments: object) -> str:
        execute("calib", *arguments, "--config", self.config)
        return self.capsys.readouterr().out

    def model(self, command: str) -> dict[str, Any]:
        code, result, _ = self.run(command, "m")
        [found] = result["models"]
        return {"code": code, **found}

    def findings(self) -> list[tuple[str, str]]:
        return [(finding["level"], finding["what"]) for finding in self.model("verify")["findings"]]


@pytest.fixture
def device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Device:
    return Device(tmp_path, capsys)


def picture(seed: int, path: Path, width: int = SIDE, height: int = SIDE) -> Path:
    """Noise in patches, so that no two look alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST).save(path)
    return path


def fill(folder: Path, count: int, name: Callable[[int], str] = "{:03}.png".format) -> None:
    for index in range(count):
        picture(index, folder / name(index))


def there(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_images_are_added_and_the_others_named(device: Device, tmp_path: Path) -> None:
    fill(tmp_path / "new", 3)
    (tmp_path / "new" / "broken.png").write_bytes((tmp_path / "new" / "000.png").read_bytes()[:60])
    (tmp_path / "new" / "text.jpg").write_text("hello")
    (tmp_path / "new" / "notes.txt").write_text("not an image, and not called one")
    code, result, _ = device.run("add", "m", tmp_path / "new")
    assert code == 3  # rejected: some
    assert result["added"] == there(device.images) == ["000.png", "001.png", "002.png"]
    refused = {Path(entry["path"]).name: entry["reason"] for entry in result["refused"]}
    assert refused.keys() == {"broken.png", "text.jpg"}
    assert refused["text.jpg"] == "is not a JPEG, PNG, WEBP or BMP image"
    nothing = {"added": [], "labels": [], "refused": [], "dry_run": False, "undo": None}
    assert device.run("add", "m", tmp_path / "new" / "001.png")[:2] == (
        0,
        {"model": "m", "folder": str(device.images), "known": 1, **nothing},
    )


def test_images_of_live_requests_are_not_for_everybody(device: Device, tmp_path: Path) -> None:
    kept = picture(0, tmp_path / "state" / "capture" / "m" / "0000000001000-01234567.png")
    if os.geteuid() == 0:
        os.chown(kept, 4, 5)
    before = os.umask(0)
    try:
        code, result, _ = device.run("add", "m", picture(1, tmp_path / "new.png"), "--from-capture")
    finally:
        os.umask(before)
    assert (code, result["added"]) == (0, ["new.png", kept.name])
    copies = [(device.images / name).stat() for name in result["added"]]
    assert [stat.S_IMODE(copy.st_mode) for copy in copies] == [0o666, 0o640]
    owner = (4, 5) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    assert [(copy.st_uid, copy.st_gid) for copy in copies] == [(os.getuid(), os.getgid()), owner]


def test_what_is_there_is_known_by_its_contents_and_keeps_its_name(device: Device, tmp_path: Path) -> None:
    picture(0, device.images / "a.png")
    same, other = picture(0, tmp_path / "b.png"), picture(1, tmp_path / "new" / "a.png")
    twice = picture(1, tmp_path / "c.png")
    bare = picture(2, tmp_path / "d.png").rename(tmp_path / "download")
    before = (device.images / "a.png").read_bytes()
    code, result, _ = device.run("add", "m", same, other, twice, bare)
    assert (code, result["known"], len(result["added"])) == (0, 2, 2)
    assert result["added"][0].startswith("a-")
    assert result["added"][1] == "download.png"
    assert (device.images / "a.png").read_bytes() == before
    assert (device.images / result["added"][0]).read_bytes() == other.read_bytes()


def test_classes_stay_classes(device: Device, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        fill(tmp_path / "new" / name, 2, lambda index, name=name: f"{name}{index}.png")
    picture(7, tmp_path / "new" / "dog" / "dog0.png")
    picture(8, tmp_path / "new" / "dog" / "dog1.png")
    assert device.run("add", "m", tmp_path / "new")[0] == 0
    assert device.model("list")["classes"] == {"cat": 2, "dog": 2}
    stray = picture(9, tmp_path / "stray.png")
    code, result, error = device.run("add", "m", stray)
    assert code == 2
    assert "give --class with one of cat, dog" in result["error"]
    assert error.count("\n") == 1
    assert device.run("add", "m", stray, "--class", "bird")[0] == 2
    assert device.run("add", "m", stray, "--class", "dog")[1]["added"] == ["dog/stray.png"]


def test_labels_come_along_and_are_asked_for(device: Device, tmp_path: Path) -> None:
    device.configure("arch: yolov5n\n    input: {size: 64}")
    scenes.write_scenes(tmp_path / "new", range(3))
    code, result, _ = device.run("add", "m", tmp_path / "new")
    assert (code, len(result["added"])) == (0, 3)
    assert there(device.images) == there(tmp_path / "new")
    assert device.model("list")["labelled"] == 3
    code, result, _ = device.run("add", "m", picture(0, tmp_path / "bare.png"))
    assert code == 2
    assert "has YOLO labels, and" in result["error"]


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return the contents of all files, None for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in paths}


def test_a_dry_run_says_the_same_and_writes_nothing(device: Device, tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "new", range(3))
    picture(0, device.images / "images" / "00001.png")
    (tmp_path / "new" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    before = everything(device.folder)
    code, planned, _ = device.run("add", "m", tmp_path / "new", "--dry-run")
    assert everything(device.folder) == before
    text = device.text("add", "m", tmp_path / "new", "--dry-run")
    assert f"{device.images}: 3 would be added, 0 known already, 1 refused\n  images/00000.png\n" in text
    assert text.endswith("nothing was written; run it without --dry-run to add them\n")
    assert (code, planned["dry_run"], planned["undo"]) == (3, True, None)
    done = device.run("add", "m", tmp_path / "new")[1]
    assert done | {"dry_run": True, "undo": None} == planned
    assert done["added"][1].startswith("images/00001-")  # the name was taken
    assert {*done["added"], *done["labels"]} == {*there(device.images)} - {"images/00001.png"}


@pytest.mark.parametrize("count", [3, 30])
def test_what_was_added_can_be_undone(device: Device, tmp_path: Path, count: int) -> None:
    scenes.write_scenes(tmp_path / "it's new", range(count))
    picture(99, device.images / "mine.png")
    picture(98, device.images / "kept" / "mine too.png")
    before = everything(device.images)
    done = device.run("add", "m", tmp_path / "it's new")[1]
    assert len(done["added"]) == len(done["labels"]) == count
    assert everything(device.images) != before
    assert ("edged-undo" in done["undo"]) is (count == 30)
    assert device.model("list")["images"] == count + 2  # a script for undoing is no image and is not passed over
    assert device.model("list")["passed_over"] == {}
    subprocess.run(done["undo"], shell=True, check=True, cwd="/")  # noqa: S602 - as a user runs it
    assert everything(device.images) == before
    text = device.text("add", "m", tmp_path / "it's new")
    assert f"\nundo: {done['undo']}\n" in text
    assert ("  and 50 more; --json lists all\n" in text) is (count == 30)


def test_nothing_that_is_there_is_replaced(device: Device, tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "new", range(2))
    label = device.images / "labels" / "00000.txt"  # of an image that is elsewhere
    label.parent.mkdir()
    label.write_text("2 0.5 0.5 0.1 0.1")
    done = device.run("add", "m", tmp_path / "new")[1]
    assert label.read_text() == "2 0.5 0.5 0.1 0.1"
    assert done["added"][0].startswith("images/00000-")
    assert done["labels"][0].startswith("labels/00000-")
    subprocess.run(done["undo"], shell=True, check=True)  # noqa: S602 - as a user runs it
    assert there(device.images) == ["labels/00000.txt"]


def test_images_as_users_have_them_are_added(device: Device, tmp_path: Path) -> None:
    odd = write_odd_images(tmp_path / "odd")
    code, done, error = device.run("add", "m", tmp_path / "odd")
    assert (code, done["refused"], error) == (0, [], "")
    assert len(done["added"]) + done["known"] == len(odd)
    assert {"drone.MPO", "old.jfif", "phone.jpg"} & {*done["added"]}
    listed = device.text("list")
    assert f"images       {len(done['added'])}, " in listed
    subprocess.run(done["undo"], shell=True, check=True)  # noqa: S602 - as a user runs it
    assert there(device.images) == []
    strange = tmp_path / "strange" / os.fsdecode(b"caf\xe9\n.png")
    picture(1, strange)
    text = device.text("add", "m", strange)
    assert "1 added" in text
    subprocess.run(text.split("undo: ")[1], shell=True, check=True)  # noqa: S602 - as a user runs it
    assert there(device.images) == []


def test_what_pillow_warns_of_is_on_no_terminal(device: Device, tmp_path: Path) -> None:
    (tmp_path / "damaged.jpg").write_bytes(damaged_exif())
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        decode(damaged_exif(), SPEC)
    code, done, error = device.run("add", "m", tmp_path / "damaged.jpg")
    assert (code, done["added"], error) == (0, ["damaged.jpg"], "")


def test_a_list_is_added_and_is_not_added_to(device: Device, tmp_path: Path) -> None:
    fill(tmp_path / "new", 3)
    (tmp_path / "new" / "some.txt").write_text("./000.png\n./002.png\n./gone.png\n")
    assert device.run("add", "m", tmp_path / "new" / "some.txt")[1]["added"] == ["000.png", "002.png"]
    device.config.write_text(device.config.read_text().replace("dir: images", "dir: new/some.txt"))
    code, result, _ = device.run("add", "m", tmp_path / "new" / "001.png")
    assert code == 2
    assert f"calibration.dir of m is the list {tmp_path}/new/some.txt" in result["error"]
    listed = device.model("list")
    assert (listed["images"], listed["split"]) == (2, None)
    [reason, *_] = [what for level, what in device.findings() if level == "error"]
    assert reason == "some.txt names 1 of 3 images that do not exist: './gone.png'"


def test_files_of_other_types_are_counted(device: Device) -> None:
    fill(device.images, 40)
    for name in ("a.gif", "b.heic", "c.HEIC", "notes.txt"):
        (device.images / name).touch()
    for command in ("list", "stats"):
        assert device.model(command)["passed_over"] == {".gif": 1, ".heic": 2}
        assert "other types  3 files are passed over: 2 .heic, 1 .gif\n" in device.text(command)
    line = "3 files are passed over: 2 .heic, 1 .gif; edged reads JPEG, PNG, WebP and BMP"
    assert ("warning", line) in device.findings()


def test_a_data_yaml_is_the_place_of_the_images(device: Device) -> None:
    scenes.write_scenes(device.folder / "set", range(40))
    (device.folder / "set" / "data.yaml").write_text("train: images\nnames: [red, green, blue]\n")
    device.config.write_text(device.config.read_text().replace("dir: images", "dir: set/data.yaml"))
    found = device.model("stats")
    assert (found["images"], found["split"]) == (40, "train")
    assert set(found["boxes"]) <= {"red", "green", "blue"}
    assert device.model("list")["labelled"] == 40
    assert "m       40 images in " in device.text("stats")
    assert f"{device.folder}/set/data.yaml, train of the data.yaml\n" in device.text("stats")
    assert f"{device.folder}/set/data.yaml, train of the data.yaml\n" in device.text("list")


def test_what_cannot_be_added(device: Device, tmp_path: Path) -> None:
    for arguments, reason in (
        (("add", "m"), "nothing to add"),
        (("add", "m", tmp_path / "none.png"), "does not exist"),
        (("add", "x", device.images), "no model 'x'; configured: m"),
    ):
        code, result, _ = device.run(*arguments)
        assert code == 2
        assert reason in result["error"]
    assert execute("calib", "list", "--config", tmp_path / "none.yaml") == 78


def test_a_folder_that_cannot_be_written_is_73(device: Device, tmp_path: Path) -> None:
    new = picture(0, tmp_path / "new" / "sub" / "a.png").parent.parent
    (device.images / "sub").write_text("a file where a folder should be")
    code, result, _ = device.run("add", "m", new)
    assert code == 73
    assert "cannot write" in result["error"]


def test_list_knows_whether_the_cache_is_current(device: Device, tmp_path: Path) -> None:
    fill(device.images, 40)
    assert device.model("list")["cache"] == "none"
    (tmp_path / "state").mkdir(exist_ok=True)
    cache = build_cache(device.images, Paths(tmp_path / "state").calibration("m"), SPEC, limit=1024)
    listed = device.model("list")
    assert (listed["cache"], listed["digest"], listed["images"]) == ("current", cache.digest, 40)
    assert listed["bytes"] == sum(path.stat().st_size for path in device.images.iterdir())
    picture(99, device.images / "one-more.png")
    assert device.model("list")["cache"] == "outdated"
    assert "cache        outdated" in device.text("list")


def test_a_good_folder_has_no_findings(device: Device) -> None:
    fill(device.images, 256)
    verified = device.model("verify")
    assert (verified["code"], verified["ok"], verified["usable"], verified["findings"]) == (0, True, 256, [])
    assert device.text("verify", "m") == "m: 256 of 256 images are usable; good\n"


def test_each_finding(device: Device) -> None:
    fill(device.images, 31)
    assert device.findings() == [("error", "31 usable images; at least 32 are needed")]
    (device.images / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    picture(5, device.images / "copy.png")
    pixels = np.asarray(Image.open(device.images / "006.png")).astype(int)
    Image.fromarray((pixels * 0.9 + 5).astype(np.uint8)).save(device.images / "like.png")
    Image.new("RGB", (16, 16), (10, 10, 10)).save(device.images / "black.png")
    found = device.findings()
    assert found[0][0] == "error"
    assert found[0][1].startswith("broken.jpg is")
    assert found[1:] == [
        ("warning", "34 usable images; more give a more accurate model: 1,024 are enough, for a detector 128"),
        ("warning", "1 images show next to nothing but one color"),
        ("warning", "2 images are copies of others"),
        ("warning", "1 images look like one before them"),
    ]
    by_what = {finding["what"]: finding["files"] for finding in device.model("verify")["findings"]}
    assert by_what["2 images are copies of others"] == ["005.png", "copy.png"]
    assert by_what["1 images look like one before them"] == ["like.png"]
    assert device.model("verify")["code"] == 3
    assert "error    broken.jpg is" in device.text("verify")


def test_small_classes_are_told(device: Device) -> None:
    for offset, (name, count) in enumerate({"a": 30, "b": 30, "c": 2}.items()):
        for index in range(count):
            picture(100 * offset + index, device.images / name / f"{index}.png")
    assert ("warning", "class c has 2 images, the others about 30") in device.findings()


def test_labels_that_do_not_fit(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.configure("arch: yolov5n\n    input: {size: 64}")
    scenes.write_scenes(device.images, range(300))
    assert device.findings() == []
    labels = device.images / "labels"
    (labels / "00000.txt").write_text("0 0.5 0.5 3 3")
    (labels / "00001.txt").unlink()
    (labels / "other.txt").write_text("")
    (labels / "classes.txt").write_text("red")
    (labels / "00002.txt").write_text("7 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1")
    assert device.findings() == [
        (
            "warning",
            "1 image is left out for its labels: labels/00000.txt, line 1, class 0: the box extends far beyond the"
            " image; give shares of its sides, 0 to 1",
        ),
        ("warning", "1 repeated line counts once (first: labels/00002.txt, line 2)"),
        ("warning", "1 images have no label file and count as showing nothing"),
        ("warning", "1 label files belong to no image"),
    ]
    assert device.model("stats")["boxes"]["7"] == 1
    state = Paths(device.folder / "state").models / "m" / "gen" / "1"
    state.mkdir(parents=True)
    manifest = {"input": scenes.INPUT.to_dict(), "task": "detection", "classes": list(scenes.NAMES)}
    (state / "manifest.json").write_text(json.dumps(manifest))
    (state.parent.parent / "current").symlink_to("gen/1")
    assert (
        "error",
        "1 box in 1 file of classes that the model lacks, such as class 7 in labels/00002.txt, line 1; the model has"
        " the classes 0 to 2",
    ) in device.findings()
    assert device.model("verify")["code"] == 3


def test_stats_are_those_of_what_the_network_sees(device: Device) -> None:
    device.configure("input: {size: 16, resize: 16, mean: [0.4, 0.5, 0.6], std: [0.2, 0.2, 0.2]}")
    for index in range(40):
        picture(index, device.images / "ab"[index % 2] / f"{index}.png", 16 + index, 20)
    cache = build_cache(device.images, device.folder / "cache", SPEC)
    pixels = torch.from_numpy(normalize(np.array(cache.images), InputSpec(16, 16, (0.0,) * 3, (1.0,) * 3))).double()
    found = device.model("stats")
    np.testing.assert_allclose(found["mean"], pixels.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(found["std"], pixels.std((0, 2, 3), correction=0), atol=1e-4)
    assert (found["configured_mean"], found["configured_std"]) == ([0.4, 0.5, 0.6], [0.2, 0.2, 0.2])
    assert (found["width"], found["height"]) == (
        {"least": 16, "median": 35.5, "most": 55},
        {"least": 20, "median": 20.0, "most": 20},
    )
    assert found["classes"] == {"a": 20, "b": 20}
    assert "(configured 0.400, 0.500, 0.600)" in device.text("stats")


def test_stats_of_nothing_are_refused(device: Device) -> None:
    code, result, _ = device.run("stats", "m")
    assert code == 3
    assert "has no usable image" in result["error"]


def test_purge_erases_what_was_kept(device: Device) -> None:
    ring = calibration_set(load_config(device.config), "m").ring
    ring.folder.parents[1].mkdir()
    ring.add(b"abc", ".png", 1.0)
    assert device.model("list")["captured"] == {"images": 1, "bytes": 3, "oldest": "1970-01-01T00:00:01.000Z"}
    assert device.run("purge", "m")[:2] == (0, {"model": "m", "removed": 1, "bytes": 3})
    assert device.text("purge", "m") == "m: 0 images of requests removed, 0 B\n"
    assert not ring.folder.exists()
