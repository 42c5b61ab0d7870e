import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edged.calibration import dataset, images
from edged.calibration.dataset import ImageCache, build_cache
from edged.calibration.images import Decoded, decode_image, normalize
from edged.calibration.letterbox import Letterbox
from edged.errors import CalibrationError, StateError
from edged.progress import SilentListener
from edged.spec import Fit, InputSpec
from tests.support.pictures import write_folder, write_png

SPEC = InputSpec(size=16, resize=18)


class Counted(SilentListener):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def progress(self, done: int, total: int) -> None:
        self.seen.append((done, total))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", classes=4, images=10)
    return tmp_path / "data"


def build(folder: Path, spec: InputSpec = SPEC, **options: Any) -> ImageCache:
    return build_cache(folder, folder.parent / "caches", spec, **options)


def decoded_again(folder: Path) -> bool:
    """Return whether building now decodes images, judged by its progress."""
    listener = Counted()
    build(folder, listener=listener)
    return bool(listener.seen)


def test_the_cache_holds_what_decoding_gives(folder: Path) -> None:
    cache = build(folder)
    assert len(cache) == len(cache.files) == 40
    for index, file in enumerate(cache.files):
        assert np.array_equal(cache.images[index], decode_image(folder / file, SPEC))
    assert cache.directory.parent == folder.parent / "caches"
    assert cache.directory.name == cache.digest[:16]
    assert cache.skipped == ()
    assert not cache.images.flags.writeable


def test_batches_are_normalized_and_in_the_requested_order(folder: Path) -> None:
    cache = build(folder)
    indices = torch.tensor([7, 3, 30])
    expected = torch.from_numpy(normalize(cache.images[[7, 3, 30]], SPEC))
    assert torch.equal(cache.batch(indices), expected)
    parts = list(cache.batches(indices, 2))
    assert [len(part) for part in parts] == [2, 1]
    assert torch.equal(torch.cat(parts), expected)
    assert all(part.is_contiguous() for part in parts)


def test_labels_follow_the_class_folders(folder: Path) -> None:
    cache = build(folder)
    assert cache.classes == ("class_0", "class_1", "class_2", "class_3")
    assert cache.labels is not None
    assert [cache.classes[label] for label in cache.labels] == [file.split("/")[0] for file in cache.files]
    assert torch.equal(cache.labels_of(torch.tensor([5, 1])), cache.labels[[5, 1]])


@pytest.mark.parametrize(("classes", "images", "held_out"), [(4, 10, 8), (4, 40, 16), (0, 33, 8), (0, 200, 20)])
def test_a_tenth_of_the_images_is_held_out(tmp_path: Path, classes: int, images: int, held_out: int) -> None:
    write_folder(tmp_path / "data", classes, images)
    cache = build(tmp_path / "data")
    assert len(cache.held_out) == held_out
    assert sorted([*cache.held_out.tolist(), *cache.calibration.tolist()]) == list(range(len(cache)))
    assert cache.held_out.dtype == cache.calibration.dtype == torch.int64
    if cache.labels is not None:
        assert torch.bincount(cache.labels[cache.held_out]).tolist() == [held_out // classes] * classes
    else:
        assert cache.labels_of(cache.held_out) is None


def test_a_second_build_decodes_nothing(folder: Path) -> None:
    listener = Counted()
    first = build(folder, listener=listener)
    assert listener.seen == [(done, 40) for done in range(1, 41)]
    assert not decoded_again(folder)
    second = build(folder)
    assert second.digest == first.digest
    assert np.array_equal(second.images, first.images)


def change(path: Path) -> None:
    write_png(path, seed=999)


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: change(folder / "class_0" / "image_0000.png"),
        lambda folder: change(folder / "class_0" / "new.png"),
        lambda folder: (folder / "class_1" / "image_0001.png").unlink(),
        lambda folder: (folder / "class_1" / "image_0001.png").rename(folder / "class_2" / "moved.png"),
    ],
    ids=["changed", "added", "removed", "moved"],
)
def test_a_change_of_the_images_is_detected(folder: Path, edit: Callable[[Path], object]) -> None:
    before = build(folder).digest
    edit(folder)
    assert decoded_again(folder)
    assert build(folder).digest != before


def test_touching_a_file_and_adding_other_files_changes_nothing(folder: Path) -> None:
    build(folder)
    os.utime(folder / "class_0" / "image_0000.png", (0, 0))
    (folder / "notes.txt").write_text("hello")
    assert not decoded_again(folder)


@pytest.mark.parametrize(
    "spec", [InputSpec(17, 18), InputSpec(16, 19), InputSpec(16, 18, (0.5,), (0.5,))], ids=["size", "resize", "grey"]
)
def test_each_preprocessing_has_its_own_cache(folder: Path, spec: InputSpec) -> None:
    first, second = build(folder), build(folder, spec)
    assert first.digest != second.digest
    assert second.images.shape == (40, spec.channels, spec.size, spec.size)


def test_mean_and_std_share_a_cache(folder: Path) -> None:
    other = InputSpec(16, 18, (0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    first, second = build(folder), build(folder, other)
    assert first.directory == second.directory
    index = torch.tensor([0])
    mean, std = torch.tensor(other.mean).view(3, 1, 1), torch.tensor(other.std).view(3, 1, 1)
    assert torch.equal(second.batch(index)[0], (torch.from_numpy(first.images[0].copy()) / 255 - mean) / std)


@pytest.mark.parametrize("damage", ["images.u8", "meta.json"])
@pytest.mark.parametrize("how", [Path.unlink, lambda path: os.truncate(path, 100), lambda path: os.truncate(path, 0)])
def test_a_damaged_cache_is_rebuilt(folder: Path, damage: str, how: Callable[[Path], object]) -> None:
    cache = build(folder)
    expected = cache.images.copy()
    how(cache.directory / damage)
    assert decoded_again(folder)
    assert np.array_equal(build(folder).images, expected)
    assert [path.name for path in cache.directory.parent.iterdir()] == [cache.directory.name]


def test_a_limit_is_balanced_repeatable_and_decodes_no_more(folder: Path) -> None:
    listener = Counted()
    cache = build(folder, limit=34, listener=listener)
    assert listener.seen[-1] == (34, 34)
    assert cache.labels is not None
    assert sorted(torch.bincount(cache.labels).tolist()) == [8, 8, 9, 9]
    assert build(folder).files[:34] == cache.files


def test_unusable_images_are_skipped_and_listed(folder: Path) -> None:
    (folder / "class_0" / "text.jpg").write_text("no image")
    (folder / "class_1" / "empty.png").touch()
    (folder / "class_2" / "gone.jpg").symlink_to("nowhere")
    for _ in ("fresh", "reopened"):
        cache = build(folder)
        assert len(cache) == 40
        assert {entry.path: entry.reason for entry in cache.skipped} == {
            "class_0/text.jpg": "is not a JPEG, PNG, WEBP or BMP image",
            "class_1/empty.png": "is empty",
            "class_2/gone.jpg": "is not a regular file",
        }


def test_too_few_usable_images_raise_an_error_with_their_number(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_folder(folder, classes=0, images=31)
    (folder / "bad.jpg").write_text("no image")
    with pytest.raises(CalibrationError, match=r"has 31 usable images, 1 skipped \(bad.jpg is not a JPEG") as caught:
        build(folder)
    assert str(folder) in str(caught.value)
    assert "at least 32" in str(caught.value)
    assert list((tmp_path / "caches").iterdir()) == []
    write_png(folder / "one_more.png", seed=1)
    assert len(build(folder)) == 32


def test_a_letterbox_has_its_own_cache_with_the_original_sizes(folder: Path) -> None:
    letterbox = InputSpec(16, 16, fit=Fit.LETTERBOX)
    cropped, whole = build_cache(folder, folder.parent / "cache", InputSpec(16, 16)), build(folder, letterbox)
    assert whole.digest != cropped.digest
    assert cropped.sizes == ()
    assert set(whole.sizes) == {(20, 20)}
    assert whole.letterbox(3) == Letterbox(20, 20, 16)
    assert build(folder, letterbox).sizes == whole.sizes
    assert np.array_equal(whole.images[2], decode_image(folder / whole.files[2], letterbox))


def test_digests_of_crops_are_those_from_before_letterboxes(folder: Path) -> None:
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in build(folder).files}
    parts = [[1, SPEC.size, SPEC.resize, 3], list(build(folder).classes), list(files), list(files.values())]
    assert build(folder).digest == hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def test_an_empty_or_missing_folder_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="has 0 usable images, 0 skipped; put at least 32"):
        build(tmp_path / "empty")
    with pytest.raises(CalibrationError, match="missing cannot be read: No such file"):
        build(tmp_path / "missing")


def test_an_executor_gives_the_same_cache(folder: Path, tmp_path: Path) -> None:
    expected = build(folder)
    with ThreadPoolExecutor(2) as executor:
        cache = build_cache(folder, tmp_path / "others", SPEC, map_fn=executor.map)
    assert cache.digest == expected.digest
    assert np.array_equal(cache.images, expected.images)


def test_results_in_flight_are_bounded(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", classes=0, images=150)
    batches: list[int] = []

    def eager_map(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        results = [function(item) for item in items]
        if isinstance(results[0], Decoded):
            batches.append(len(results))
        return results

    assert len(build(tmp_path / "data", map_fn=eager_map)) == 150
    assert max(batches) <= 64


def test_a_file_that_changes_between_hashing_and_decoding_is_skipped(folder: Path) -> None:
    calls = 0

    def modifying_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        nonlocal calls
        calls += 1
        if calls == 2:
            change(folder / "class_0" / "image_0000.png")
        return map(function, items)

    cache = build(folder, map_fn=modifying_map)
    assert [(entry.path, entry.reason) for entry in cache.skipped] == [
        ("class_0/image_0000.png", "changed while it was being read")
    ]


def test_a_cache_outlives_its_folder_on_disk_while_it_is_open(folder: Path) -> None:
    cache = build(folder)
    expected = cache.batch(cache.calibration)
    shutil.rmtree(cache.directory)
    assert torch.equal(cache.batch(cache.calibration), expected)


def test_a_cache_root_that_is_not_writable_raises_a_state_error(folder: Path) -> None:
    (folder.parent / "caches").write_text("a file")
    with pytest.raises(StateError, match="cannot write"):
        build(folder)


def test_two_concurrent_builders_both_get_the_complete_cache(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "caches"

    def map_during_another_build(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        results = list(map(function, items))
        build_cache(folder, root, SPEC)
        return results

    cache = build_cache(folder, root, SPEC, map_fn=map_during_another_build)
    assert len(cache) == 40
    assert [path.name for path in root.iterdir()] == [cache.directory.name]


def test_meta_is_plain_json(folder: Path) -> None:
    meta = json.loads((build(folder).directory / "meta.json").read_text())
    assert set(meta) == {"digest", "files", "labels", "classes", "skipped", "max_pixels"}


READ_ALL = """
import resource, sys
from pathlib import Path
from edged.calibration.dataset import build_cache
from edged.calibration.images import Decoded
from edged.spec import InputSpec
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
spec = InputSpec(512, 512)
small = build_cache(Path(sys.argv[1]), Path(sys.argv[2]), spec, limit=32)
list(map(len, small.batches(small.calibration, 8)))
before = peak()
cache = build_cache(Path(sys.argv[1]), Path(sys.argv[2]), spec)
sum(map(len, cache.batches(cache.calibration, 8)))
print(cache.images.nbytes // 2**20, peak() - before)
"""


def test_building_and_reading_keep_memory_far_below_the_cache(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", classes=0, images=200)
    command = [sys.executable, "-c", READ_ALL, tmp_path / "data", tmp_path / "caches"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cache_mib, grown_mib = map(int, output.split())
    assert cache_mib == 150
    assert grown_mib < 60


def test_large_images_are_decoded_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at once would take gigabytes on as many cores."""
    plain = build(folder)
    write_png(folder / "class_0" / "large.png", 77, 40, 40)
    write_png(folder / "class_1" / "larger.png", 78, 80, 80)
    monkeypatch.setattr(dataset, "MAX_PIXELS", 500)
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    monkeypatch.setattr(dataset, "LARGE_PIXELS", 2000)
    alone: list[bool] = []
    large = dataset._load_large
    monkeypatch.setattr(
        dataset,
        "_load_large",
        lambda *given: (alone.append(threading.current_thread() is threading.main_thread()), large(*given))[1],
    )
    with ThreadPoolExecutor(4) as pool:
        cache = build(folder, map_fn=pool.map)
    assert set(cache.files) - set(plain.files) == {"class_0/large.png"}
    assert [(entry.path, entry.reason) for entry in cache.skipped] == [
        ("class_1/larger.png", "has too many pixels, 80 x 80; at most 2000 are allowed")
    ]
    assert alone == [True, True]


def test_what_older_bounds_skipped_is_tried_again(folder: Path) -> None:
    (folder / "class_0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    cache = build(folder)
    meta = json.loads((cache.directory / "meta.json").read_bytes())
    assert not decoded_again(folder)
    (cache.directory / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "max_pixels"}))
    assert decoded_again(folder)
    assert not decoded_again(folder)


def test_files_of_other_types_are_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.gif", "b.GIF", "c.avif", "d", "data.yaml", "classes.txt"):
        (folder / name).touch()
    cache = build(folder)
    assert cache.others == {"": 1, ".avif": 1, ".gif": 2}
    assert caplog.messages == [f"{folder}: 4 files are passed over: 2 .gif, 1 without a suffix, 1 .avif"]
    shutil.rmtree(folder / "class_0")
    shutil.rmtree(folder / "class_1")
    with pytest.raises(
        CalibrationError, match=r"has 20 usable images, 0 skipped, 4 files are passed over: 2 .gif, .*; put"
    ):
        build(folder)
