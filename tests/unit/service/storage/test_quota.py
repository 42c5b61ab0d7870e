import os
from pathlib import Path

import pytest
from PIL import Image

from edged.artifacts.integrity import manifest_digest_line
from edged.artifacts.store import ModelStore
from service.config.load import load_config
from service.journal.states import State
from service.journal.store import Journal
from service.storage.paths import Paths
from service.storage.quota import Quota

SIZE = 1000  # of each generation and each cache


class Device:
    """A state folder with generations and caches of known sizes and ages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir()
        self.journal: Journal | None = None
        self.ages = iter(range(1000))

    def storage(self, max_bytes: int | str = "null") -> Quota:
        models = "[{name: m, calibration: {dir: images}}, {name: n, calibration: {dir: images}}]"
        text = f"state_dir: state\nmodels: {models}\nstorage: {{max_bytes: {max_bytes}}}\n"
        (self.folder / "edged.yaml").write_text(text)
        config = load_config(self.folder / "edged.yaml")
        paths = Paths(config.state_dir)
        paths.make()
        self.journal = self.journal or Journal(paths.journal)
        return Quota(config, paths, ModelStore(paths.models), self.journal)

    def publish(self, model: str, live: bool = True) -> Path:
        storage = self.storage()
        staged = storage.paths.staging / "made"
        staged.mkdir()
        manifest = b" " * (SIZE - len(manifest_digest_line(b"")))
        (staged / "manifest.json").write_bytes(manifest)
        number = storage.store.publish(model, staged)
        if live:
            storage.store.switch(model, number)
        return self.newest(storage.store.path(model, number))

    def cache(self, model: str, name: str) -> Path:
        folder = self.storage().paths.calibration(model) / name
        folder.mkdir(parents=True)
        (folder / "images.u8").write_bytes(b" " * SIZE)
        return self.newest(folder)

    def newest(self, path: Path) -> Path:
        os.utime(path, (age := 1_000_000 + next(self.ages), age))
        return path

    def update(self, file_bytes: int = 100, **fields):
        self.storage()
        update = self.journal.create("m", "a.pt", file_bytes)
        self.journal.advance(update.id, State.SETTLED)
        return self.journal.advance(update.id, State.CLAIMED, **fields)


@pytest.fixture
def device(tmp_path):
    made = Device(tmp_path)
    yield made
    made.journal.close()


def test_without_a_limit_nothing_goes(device):
    for _ in range(4):
        device.publish("m")
    device.cache("m", "a")
    assert device.storage().make_room(10**15) == 0
    assert device.storage().used() >= 5 * SIZE


def test_the_oldest_go_and_no_more_than_needed(device):
    oldest, cache, old, previous, current = (
        device.publish("m"),
        device.cache("n", "a"),
        device.publish("m"),
        device.publish("m"),
        device.publish("m"),
    )
    used = device.storage().used()
    assert device.storage(used).make_room(0) == 0
    assert oldest.exists()
    assert device.storage(used).make_room(SIZE + 1) == 0
    assert [path.exists() for path in (oldest, cache, old, previous, current)] == [False, False, True, True, True]
    assert device.storage(used).make_room(10 * SIZE) > 0
    assert [path.exists() for path in (old, previous, current)] == [False, True, True]


def test_what_nobody_is_configured_for_goes_first(device):
    old, live, gone = device.publish("m"), device.publish("m"), device.publish("gone")
    device.publish("m")
    used = device.storage().used()
    assert device.storage(used).make_room(1) == 0
    assert [path.exists() for path in (old, live, gone)] == [True, True, False]
    assert device.storage().store.current("gone") is None


def test_what_is_needed_stays(device):
    waiting = device.publish("m", live=False)
    live = device.publish("m")
    other = device.publish("n")
    kept, mine = device.cache("m", "old"), device.cache("m", "new")
    update = device.update()
    for state in (State.VERIFIED, State.LOADED, State.CALIBRATED, State.QUANTIZED, State.EVALUATED):
        device.journal.advance(update.id, state)
    device.journal.advance(update.id, State.PUBLISHED, generation=int(waiting.name))
    storage = device.storage(1)
    model = storage.config.model("m")
    assert storage.make_room(0, caches=False) > 0
    assert kept.exists()
    assert storage.make_room(0, caches_of=model) == storage.used() - 1
    assert [path.exists() for path in (waiting, live, other, kept, mine)] == [True, True, True, False, True]


def test_an_update_that_cannot_fit_says_what_it_takes(device):
    device.publish("m")
    for index in range(40):
        Image.new("RGB", (8, 8)).save(device.folder / "images" / f"{index}.png")
    update = device.update(file_bytes=5000)
    cache_bytes = 40 * 3 * 224 * 224
    model = device.storage().config.model("m")
    assert device.storage().needed(update, model) == 5000 + cache_bytes
    used = device.storage().used()
    assert device.storage(used + 5000 + cache_bytes).why_no_room(update, model, 60.0) is None
    found = device.storage(used + 1000).why_no_room(update, model, 60.0)
    assert (found.code, found.seconds) == ("disk", 60.0)
    assert found.reason.startswith(f"update {update.id} takes about 5.7 MiB, 5.7 MiB more than there is room for")
    device.cache("m", "there")
    assert device.storage().needed(update, model) == 5000
    assert device.storage(used + SIZE + 5000).why_no_room(update, model, 60.0) is None


def test_a_full_disk_is_no_reason_to_try(device):
    update = device.update(file_bytes=10**18)
    storage = device.storage()
    found = storage.why_no_room(update, storage.config.model("m"), 7.0)
    assert (found.code, found.seconds) == ("disk", 7.0)
    assert "are free on the disk of" in found.reason
