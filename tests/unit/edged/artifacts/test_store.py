import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.artifacts.store import ModelStore
from edged.errors import ArtifactError, StateError, UsageError
from tests.support.artifact_samples import stage


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def publish(store: ModelStore, mark: str, model: str = "m") -> int:
    return store.publish(model, stage(store.root.parent / "staging" / mark, mark))


def marks(folder: Path) -> set[str]:
    """Return the marks in the files of a generation: a single one if the files belong together."""
    texts = [json.loads((folder / name).read_text())["mark"] for name in ("manifest.json", "report.json")]
    return {*texts, (folder / "weights.safetensors").read_text()}


def test_a_model_without_generations_is_empty(store: ModelStore) -> None:
    assert store.current("m") is None
    assert store.previous("m") is None
    assert store.generations("m") == []
    assert store.prune("m", keep=3) == []


def test_publish_moves_the_folder_without_switching(store: ModelStore) -> None:
    staged = stage(store.root.parent / "staging" / "a", "a")
    assert store.publish("m", staged) == 1
    assert not staged.exists()
    assert marks(store.path("m", 1)) == {"a"}
    assert store.current("m") is None
    assert store.manifest("m", 1) == {"mark": "a"}


def test_a_generation_is_whole_if_its_weights_have_their_size(store: ModelStore) -> None:
    assert publish(store, "a") == 1
    folder = store.path("m", 1)
    size = (folder / "weights.safetensors").stat().st_size
    (folder / "manifest.json").write_text(json.dumps({"weights": {"sha256": "ab", "bytes": size}}))
    (folder / "report.json").unlink()  # serving does not need it
    store.require_whole("m", 1)
    for damage, message in (
        (lambda: (folder / "weights.safetensors").write_bytes(b""), f"has 0 bytes, its manifest says {size}"),
        (lambda: (folder / "weights.safetensors").unlink(), "cannot read .*weights.safetensors: No such file"),
        (lambda: (folder / "manifest.json").write_text('{"weights": {}}'), "is no manifest: KeyError"),
    ):
        damage()
        with pytest.raises(ArtifactError, match=message):
            store.require_whole("m", 1)


def test_switch_and_rollback_swap_current_and_previous(store: ModelStore) -> None:
    for mark in "abc":
        store.switch("m", publish(store, mark))
    assert (store.current("m"), store.previous("m")) == (3, 2)
    store.switch("m", 2)
    assert (store.current("m"), store.previous("m")) == (2, 3)
    store.switch("m", 2)
    assert (store.current("m"), store.previous("m")) == (2, 3)
    assert str((store.root / "m" / "current").readlink()) == "gen/2"
    assert marks(store.root / "m" / "current") == {"b"}


def test_models_are_independent(store: ModelStore) -> None:
    assert publish(store, "a", "one") == publish(store, "b", "two") == 1
    store.switch("one", 1)
    assert store.current("two") is None


def test_a_number_is_never_reused(store: ModelStore) -> None:
    for mark in "abc":
        publish(store, mark)
    store.switch("m", 1)
    assert store.prune("m", keep=0) == [2, 3]
    assert publish(store, "d") == 4


def test_prune_keeps_the_newest_the_current_and_the_previous(store: ModelStore) -> None:
    for mark in "abcdef":
        publish(store, mark)
    store.switch("m", 1)
    store.switch("m", 3)
    assert store.prune("m", keep=2) == [2, 4]
    assert store.generations("m") == [1, 3, 5, 6]


def test_prune_removes_what_a_crash_left_behind(store: ModelStore) -> None:
    publish(store, "a")
    stage(store.root / "m" / "gen" / ".7.abcd.tmp", "half")
    store.prune("m", keep=1)
    assert [path.name for path in (store.root / "m" / "gen").iterdir()] == ["1"]


def test_switching_to_a_missing_generation_raises_an_error(store: ModelStore) -> None:
    publish(store, "a")
    with pytest.raises(ArtifactError, match=r"model 'm' has no generation 2; it has \[1\]"):
        store.switch("m", 2)


def test_publishing_a_folder_without_manifest_raises_an_error(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        store.publish("m", tmp_path / "empty")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/abs", ".hidden", "a\0b", "a\n", "x" * 200])
def test_a_model_name_cannot_leave_the_folder(store: ModelStore, name: str) -> None:
    with pytest.raises(UsageError, match="model name has value"):
        store.current(name)


def test_a_link_that_leads_to_no_generation_is_described_and_replaced(store: ModelStore) -> None:
    assert store.link_problem("m") is None  # nothing was ever published
    publish(store, "a")
    link, other = store.root / "m" / "current", store.root / "other"
    link.symlink_to(store.path("m", 1))  # absolute, and still the right folder
    assert (store.current("m"), store.link_problem("m")) == (1, None)
    link.unlink()
    assert str(store.link_problem("m")).endswith("current is missing")
    for target in ("../other/gen/1", "/etc", "gen/one"):
        link.symlink_to(target)
        assert (store.current("m"), str(store.link_problem("m"))) == (
            None,
            f"{link} points to {target!r}, not to gen/<number>",
        )
        link.unlink()
    link.symlink_to("gen/7")
    assert (store.current("m"), str(store.link_problem("m"))) == (7, f"{link} points to generation 7, which is missing")
    for make in (link.write_text, lambda _: link.mkdir()):
        link.unlink()
        make("what was there")
        assert (store.current("m"), store.link_problem("m")) == (None, f"{link} is not a link")
        (store.root / "m" / "previous").unlink(missing_ok=True)
        (store.root / "m" / "previous").symlink_to("gen/1")
        store.restore("m", 1)
        assert (store.current("m"), store.previous("m")) == (1, None)
    found = sorted(store.quarantine_folder("m").iterdir())  # nothing that was there is lost
    assert [path.name.split(".")[1] for path in found] == ["current", "current"]
    assert sorted(path.is_dir() for path in found) == [False, True]
    assert not other.exists()


def test_a_damaged_generation_is_moved_aside_with_the_reason(store: ModelStore) -> None:
    for mark in "ab":
        publish(store, mark)
    store.quarantine("m", 2, {"reason": "a bit"})
    store.quarantine("m", 2, {"reason": "repeated after a crash"})
    assert store.generations("m") == [1]
    assert store.quarantined("m") == {2: {"reason": "a bit"}}
    assert json.loads((store.quarantine_folder("m") / "2/artifact/report.json").read_text()) == {"mark": "b"}
    (store.root / "m" / "last").unlink()
    assert publish(store, "c") == 3  # its number is not used again
    store.quarantine("m", 9, {"reason": "missing"})
    (store.quarantine_folder("m") / "9" / "damage.json").write_text("{")
    assert store.quarantined("m") == {2: {"reason": "a bit"}, 9: {}}


def test_a_missing_or_damaged_manifest_raises_an_error_with_its_path(store: ModelStore) -> None:
    publish(store, "a")
    with pytest.raises(ArtifactError, match=r"gen/9/manifest.json.*No such file"):
        store.manifest("m", 9)
    for text in ("{", "[]"):
        (store.path("m", 1) / "manifest.json").write_text(text)
        with pytest.raises(ArtifactError, match=r"manifest.json"):
            store.manifest("m", 1)


def test_a_store_that_is_not_writable_raises_a_state_error(store: ModelStore) -> None:
    staged = stage(store.root.parent / "staging" / "a", "a")
    store.root.write_text("a file")
    with pytest.raises(StateError, match="cannot write"):
        store.publish("m", staged)
    assert marks(staged) == {"a"}


def test_readers_always_find_current_while_a_writer_switches(store: ModelStore) -> None:
    for mark in ("even", "odd"):
        publish(store, mark)
    store.switch("m", 1)
    current = store.root / "m" / "current"
    done = threading.Event()
    reads: list[str] = []
    misses: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                reads.append((current / "weights.safetensors").read_text())
                assert store.current("m") in (1, 2)
            except (OSError, AssertionError) as error:
                misses.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(500):
            store.switch("m", 1 + (turn + 1) % 2)
    finally:
        done.set()
        reader.join()
    assert misses == []
    assert set(reads) == {"even", "odd"}


# Kills a real process before its k-th change of the disk, for every k, and checks what it left behind.
CRASHER = """
import os, sys
from pathlib import Path
from edged.artifacts.store import ModelStore
CHANGES = {"os.rename", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
root, staged, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
armed, seen = False, 0
def hook(event, args):
    global seen
    if armed and (event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))):
        seen += 1
        if seen > step:
            os._exit(9)
store = ModelStore(root)
sys.addaudithook(hook)
armed = True
generation = store.publish("m", staged)
store.switch("m", generation)
store.prune("m", keep=1)
os._exit(0)
"""


def test_after_a_crash_at_any_step_current_is_readable_and_the_work_can_be_repeated(tmp_path: Path) -> None:
    live: list[int] = []
    for step in range(100):
        store = ModelStore(tmp_path / str(step) / "models")
        for mark in ("one", "two"):
            store.switch("m", publish(store, mark))
        staged = stage(store.root.parent / "staging" / "three", "three")
        crash = [sys.executable, "-c", CRASHER, store.root, staged, str(step)]
        result = subprocess.run([str(part) for part in crash], capture_output=True, text=True)
        current = store.current("m")
        assert current is not None
        live.append(current)
        assert marks(store.root / "m" / "current") == {"two" if current == 2 else "three"}
        assert all(len(marks(store.path("m", generation))) == 1 for generation in store.generations("m"))
        # As after a restart, repeat what is not done.
        generation = publish(store, "again")
        assert generation > max(2, current)
        store.switch("m", generation)
        store.prune("m", keep=1)
        assert marks(store.root / "m" / "current") == {"again"}
        assert store.previous("m") == current
        assert [path.name for path in (store.root / "m" / "gen").iterdir() if path.name.startswith(".")] == []
        if result.returncode == 0:
            break
        assert result.returncode == 9, result.stderr
    else:
        pytest.fail("the process never finished")
    # Every crash before the commit point served the old generation, every one after it the new.
    assert live == sorted(live)
    assert set(live) == {2, 3}
    assert step > 10


class StoreMachine(RuleBasedStateMachine):
    """A comparison of the store with a model of it in a few variables."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = ModelStore(Path(self.folder.name) / "models")
        self.given = 0
        self.present: list[int] = []
        self.current: int | None = None
        self.previous: int | None = None

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule()
    def publish(self) -> None:
        self.given += 1
        assert publish(self.store, str(self.given)) == self.given
        self.present.append(self.given)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def switch(self, data: st.DataObject) -> None:
        target = data.draw(st.sampled_from(self.present))
        self.store.switch("m", target)
        if target != self.current:
            self.previous, self.current = self.current, target

    @rule(keep=st.integers(0, 3))
    def prune(self, keep: int) -> None:
        newest = sorted(self.present)[-keep:] if keep else []
        removed = [g for g in self.present if g not in {*newest, self.current, self.previous}]
        assert self.store.prune("m", keep) == removed
        self.present = [g for g in self.present if g not in removed]

    @invariant()
    def agrees(self) -> None:
        fresh = ModelStore(self.store.root)  # all state is on the disk
        assert fresh.current("m") == self.current
        assert fresh.previous("m") == self.previous
        assert fresh.generations("m") == self.present
        assert all(marks(fresh.path("m", g)) == {str(g)} for g in self.present)


StoreMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)
TestStoreMachine = StoreMachine.TestCase


def test_generations_are_read_by_number_not_by_name(store: ModelStore) -> None:
    for index in range(11):
        publish(store, str(index))
    (store.root / "m" / "gen" / "notes").mkdir()
    assert store.generations("m") == list(range(1, 12))
    assert [path.name for path in store.root.iterdir()] == ["m"]
