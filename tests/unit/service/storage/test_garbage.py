import dataclasses
import json
import os
from pathlib import Path

import pytest

from edged.artifacts.integrity import manifest_digest_line
from edged.artifacts.store import ModelStore
from edged.errors import UnavailableError, UsageError
from service.config.load import RejectedConfig, load_config
from service.journal.states import WAY, State
from service.journal.store import Journal
from service.storage.garbage import collect_without_daemon, find, remove
from service.storage.paths import Paths
from service.storage.retention import trim
from service.storage.state_lock import lock_state

DIGESTS = [letter * 64 for letter in "abcd"]


@pytest.fixture
def device(tmp_path):
    """A state folder with a bit of everything."""
    (tmp_path / "images").mkdir()
    (tmp_path / "edged.yaml").write_text(
        "state_dir: state\nmodels: [{name: m, calibration: {dir: images}, keep: 2}]\n", encoding="utf-8"
    )
    made = Device(tmp_path)
    yield made
    made.journal.close()


class Device:
    def __init__(self, folder: Path) -> None:
        self.config = load_config(folder / "edged.yaml")
        self.paths = Paths(self.config.state_dir)
        self.paths.make()
        self.store = ModelStore(self.paths.models)
        self.journal = Journal(self.paths.journal)

    def publish(self, digest: str, model: str = "m", onnx: str | None = None) -> None:
        staged = self.paths.staging / "made"
        staged.mkdir()
        manifest = {"calibration": {"digest": digest}} | ({} if onnx is None else {"onnx": {"sha256": onnx}})
        (staged / "manifest.json").write_text(json.dumps(manifest))
        self.store.switch(model, self.store.publish(model, staged))

    def cache(self, name: str, model: str = "m", age_s: float = 0.0, size: int = 10) -> Path:
        folder = self.paths.calibration(model) / name
        folder.mkdir(parents=True)
        (folder / "images.u8").write_bytes(bytes(size))
        return aged(folder, age_s)

    def find(self, caches: bool = True) -> list[tuple[str, str, int]]:
        found = find(self.config, self.paths, self.store, self.journal, caches=caches)
        self.found = found
        return sorted((entry.kind, str(entry.path.relative_to(self.paths.root)), entry.bytes) for entry in found)

    def remove(self) -> None:
        remove(self.found, self.config, self.store)


def aged(path: Path, age_s: float) -> Path:
    changed = path.stat().st_mtime - age_s
    os.utime(path, (changed, changed))
    return path


def test_a_fresh_device_has_none(device):
    assert device.find() == []
    device.remove()


def test_generations_beyond_keep(device):
    for _ in range(4):
        device.publish(DIGESTS[0])
    manifest = json.dumps({"calibration": {"digest": DIGESTS[0]}}).encode()
    size = len(manifest) + len(manifest_digest_line(manifest))
    assert device.find() == [("generation", "models/m/gen/1", size), ("generation", "models/m/gen/2", size)]
    assert device.store.generations("m") == [1, 2, 3, 4]  # finding changes nothing
    device.remove()
    assert device.store.generations("m") == [3, 4]
    assert device.find() == []


def test_generations_of_a_model_that_is_not_configured_any_more(device):
    for _ in range(3):
        device.publish(DIGESTS[0], "gone")
    device.publish(DIGESTS[0])
    update = device.journal.create("gone", "a.pt", 1)
    for state in WAY[1 : WAY.index(State.PUBLISHED)]:
        device.journal.advance(update.id, state)
    device.journal.advance(update.id, State.PUBLISHED, generation=2)  # interrupted, and goes on if the model comes back
    assert [path for _, path, _ in device.find()] == ["models/gone/gen/1", "models/gone/gen/3"]
    device.remove()
    assert device.store.generations("gone") == [2]
    assert (device.store.current("gone"), device.store.previous("gone")) == (None, 2)
    device.journal.advance(update.id, State.SUPERSEDED)
    assert [path for _, path, _ in device.find()] == ["models/gone/gen/2"]
    device.remove()
    assert (device.find(), device.store.generations("gone")) == ([], [])
    assert (device.store.current("gone"), device.store.previous("gone")) == (None, None)
    device.publish(DIGESTS[0], "gone")  # it comes back, and no number means two things
    assert device.store.current("gone") == 4
    assert device.store.generations("m") == [1]


def test_images_that_no_generation_was_made_with(device):
    device.publish(DIGESTS[0])
    used = device.cache(DIGESTS[0][:16], age_s=300)
    old = device.cache(DIGESTS[1][:16], age_s=200)
    newest = device.cache(DIGESTS[2][:16], age_s=100)
    half = device.cache(f".{DIGESTS[3][:16]}.0123.tmp")
    gone = device.cache(DIGESTS[0][:16], model="not-configured")
    assert device.find(caches=False) == []
    expected = [("calibration", str(path.relative_to(device.paths.root)), 10) for path in (half, old, gone)]
    assert device.find() == sorted(expected)
    device.remove()
    assert [path.exists() for path in (used, old, newest, half, gone)] == [True, False, True, False, False]


def test_what_no_open_update_needs(device):
    update = device.journal.create("m", "a.pt", 1)
    device.journal.advance(update.id, State.SETTLED)
    device.journal.advance(update.id, State.CLAIMED, sha256=DIGESTS[0])
    kept = [device.paths.staging / str(update.id), device.paths.claimed / DIGESTS[0], device.paths.claimed / DIGESTS[1]]
    dropped = [device.paths.staging / "99", device.paths.claimed / DIGESTS[2]]
    for folder in (*kept, *dropped):
        folder.mkdir()
    aged(kept[1], 7200)  # old, and needed
    aged(dropped[1], 7200)
    half = device.paths.claimed / ".claim.0123.tmp"
    half.write_bytes(b"12345")
    aged(half, 7200)
    assert [path for _, path, _ in device.find()] == ["claimed/.claim.0123.tmp", f"claimed/{DIGESTS[2]}", "staging/99"]
    device.remove()
    assert all(folder.exists() for folder in kept)
    assert not any(path.exists() for path in (*dropped, half))


def reject_file(device: Device, digest: str, age_s: float, size: int = 10) -> Path:
    folder = device.paths.rejected / digest
    folder.mkdir()
    (folder / "file").write_bytes(bytes(size))
    return aged(folder, age_s)


def test_rejected_files_beyond_a_number_or_an_age(device):
    day = 86400
    folders = [reject_file(device, letter * 64, days * day) for letter, days in zip("abcdef", range(6), strict=True)]
    assert device.find() == []
    limits = {"keep": 4, "keep_days": 2.5}
    device.config = dataclasses.replace(device.config, rejected=RejectedConfig(**limits))
    update = device.journal.create("m", "a.pt", 1)
    device.journal.advance(update.id, State.SETTLED)
    device.journal.advance(update.id, State.CLAIMED, sha256="d" * 64)  # being put aside just now
    assert [path for _, path, _ in device.find()] == [f"rejected/{letter * 64}" for letter in "ef"]
    device.config = dataclasses.replace(device.config, rejected=RejectedConfig(keep=1, keep_days=100))
    assert [path for _, path, _ in device.find()] == [f"rejected/{letter * 64}" for letter in "bcef"]
    device.remove()
    assert [folder.exists() for folder in folders] == [True, False, False, True, False, False]


def test_without_a_daemon(device):
    reject_file(device, "a" * 64, 0)
    device.config = dataclasses.replace(device.config, rejected=RejectedConfig(keep=0))
    listed = [{"kind": "rejected", "model": "", "path": f"rejected/{'a' * 64}", "bytes": 10}]
    told = {"dry_run": True, "removed": listed, "bytes": 10, "skipped": None}
    device.journal.close()
    assert collect_without_daemon(device.config, dry_run=True) == told
    assert collect_without_daemon(device.config, dry_run=False) == {**told, "dry_run": False}
    assert collect_without_daemon(device.config, dry_run=False)["removed"] == []


def test_not_beside_a_daemon_and_not_where_there_never_was_one(device):
    with lock_state(device.paths.lock), pytest.raises(UnavailableError, match="another edged daemon uses"):
        collect_without_daemon(device.config, dry_run=True)
    device.journal.close()
    device.paths.journal.unlink()
    with pytest.raises(UsageError, match="holds no journal of edged"):
        collect_without_daemon(device.config, dry_run=True)
    assert not device.paths.journal.exists()


def test_compiled_models_that_no_generation_needs(device):
    def compiled(name, model="m", age_s=0.0):
        path = device.paths.engine_cache(model) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"engine")
        return aged(path, age_s)

    a, b, c, d = (digest[:16] for digest in DIGESTS)
    for digest in DIGESTS[:3]:
        device.publish(digest, onnx=digest)  # two of them are kept
    device.publish(DIGESTS[0], "gone", onnx=DIGESTS[0])
    kept = [compiled(f"{b}-openvino-1"), compiled(f"{c}-openvino-2"), compiled(f"{c}-other-1")]
    kept.append(compiled(f".{c}-openvino-9.0a1b.tmp"))  # which is being written
    kept.append(compiled(f"{d}-tensorrt_plan-1/engine.plan").parent)  # its generation is not published yet
    kept.append(aged(compiled(f"{c}-tensorrt_plan-1/engine.plan").parent, 7200))
    kept.append(compiled("timing.cache", age_s=7200))
    aged(compiled(f"{d}-tensorrt_plan-2/engine.plan").parent, 7200)
    compiled("timing.cache", "gone", age_s=7200)
    compiled(f"{a}-openvino-1")
    compiled(f"{c}-openvino-1", age_s=10)  # of another version
    compiled(f"{d}-openvino-1")
    compiled(f".{c}-openvino-9.0a1c.tmp", age_s=7200)
    compiled(f"{a}-openvino-1", "gone")  # its generation is removed as well
    found = {path for kind, path, _ in device.find() if kind == "engine"}
    assert found == {
        f"engines/m/{a}-openvino-1",
        f"engines/m/{c}-openvino-1",
        f"engines/m/{d}-openvino-1",
        f"engines/m/.{c}-openvino-9.0a1c.tmp",
        f"engines/gone/{a}-openvino-1",
        f"engines/m/{d}-tensorrt_plan-2",
        "engines/gone/timing.cache",
    }
    device.remove()
    assert sorted(path for path in device.paths.engine_cache("m").iterdir()) == sorted(kept)
    assert [entry for entry in device.find() if entry[0] == "engine"] == []


def test_damaged_generations_are_collected_on_request_and_kept_for_days_otherwise(device):
    for _ in range(2):
        device.publish(DIGESTS[0])
    device.store.quarantine("m", 1, {"reason": "a bit"})
    ((kind, path, size),) = device.find()
    assert (kind, path, size > 0) == ("damaged", "models/m/damaged/1", True)
    folder = device.paths.root / path
    trim(device.config, device.paths, device.journal)
    assert folder.exists()
    aged(folder, 31 * 86400)
    trim(device.config, device.paths, device.journal)
    assert not folder.exists()
