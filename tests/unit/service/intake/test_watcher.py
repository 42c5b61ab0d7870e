import asyncio
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from edged.signing.verification import signature_of
from service.intake import watcher as watcher_module
from service.intake.drop_folder import DropFolder, Refusal, sidecar_of
from service.intake.run_folder import note_taken
from service.intake.temporaries import Temporaries, temporary_in
from service.intake.watcher import Watcher, WatchOptions
from tests.support.signing import Signer

SETTLE_S = 0.2
NEVER_S = 600.0  # longer than any test: what is found without a rescan was found by an event
DEADLINE_S = 20.0


class Reports:
    """Everything that the watcher reported, to be awaited."""

    def __init__(self):
        self.drops, self.refusals, self.health, self.rebuilt = (asyncio.Queue() for _ in range(4))

    def found(self, item):
        (self.refusals if isinstance(item, Refusal) else self.drops).put_nowait(item)

    async def drop(self):
        return await asyncio.wait_for(self.drops.get(), DEADLINE_S)

    async def name(self):
        return (await self.drop()).path.name

    async def until_up_is(self, up):
        while await asyncio.wait_for(self.health.get(), DEADLINE_S) is not up:
            pass


@asynccontextmanager
async def watching(root, *, models=("m",), max_bytes=1 << 30, **options):
    reports = Reports()
    watcher = Watcher(
        DropFolder(root, models, max_bytes),
        WatchOptions(**{"settle_s": SETTLE_S, "rescan_s": NEVER_S, **options}),
        on_found=reports.found,
        on_health=reports.health.put_nowait,
        on_rebuilt=reports.rebuilt.put_nowait,
    )
    await watcher.start()
    try:
        await reports.until_up_is(True)
        yield reports, watcher
    finally:
        await watcher.stop()


def run(test):
    """The test function, in an event loop."""

    def wrapped(tmp_path):
        asyncio.run(test(tmp_path))

    wrapped.__name__ = test.__name__
    return wrapped


def elapsed(start):
    return asyncio.get_running_loop().time() - start


def now():
    return asyncio.get_running_loop().time()


@run
async def test_a_written_file_is_told_once_it_is_quiet(tmp_path):
    async with watching(tmp_path) as (reports, _):
        start = now()
        (tmp_path / "m" / "a.pt").write_bytes(b"abc")
        drop = await reports.drop()
        assert (drop.model, drop.path, drop.size, drop.quiet) == ("m", tmp_path / "m" / "a.pt", 3, True)
        assert elapsed(start) >= SETTLE_S
        (tmp_path / "m" / "b.pt").write_bytes(b"abc")
        assert await reports.name() == "b.pt"  # and not a.pt again


@run
async def test_a_slow_writer_is_waited_for(tmp_path):
    async with watching(tmp_path, settle_s=2) as (reports, _):
        path = tmp_path / "m" / "a.pt"
        for _ in range(12):  # each pause is far shorter than the wait, all of them are longer
            with path.open("ab") as file:
                file.write(b"x")
            await asyncio.sleep(0.2)
            assert reports.drops.empty()
        assert (await reports.drop()).size == 12


@run
async def test_a_rename_into_the_folder_skips_the_wait(tmp_path):
    async with watching(tmp_path, settle_s=NEVER_S) as (reports, _):
        inside, outside = tmp_path / "m" / ".a.tmp", tmp_path / "b.part"
        inside.write_bytes(b"x")
        inside.rename(tmp_path / "m" / "a.pt")
        first = await reports.drop()
        assert (first.path.name, first.settled_by, first.quiet) == ("a.pt", "rename", False)
        outside.write_bytes(b"x")
        outside.rename(tmp_path / "m" / "b.pt")
        assert await reports.name() == "b.pt"


@run
async def test_a_checksum_beside_it_skips_the_wait(tmp_path):
    async with watching(tmp_path, settle_s=NEVER_S) as (reports, _):
        path = tmp_path / "m" / "a.pt"
        path.write_bytes(b"x")
        sidecar_of(path).write_text("0" * 64)
        assert (await reports.drop()).settled_by == "sidecar"


@run
async def test_a_file_waits_for_the_checksum_that_follows_it(tmp_path):
    async with watching(tmp_path, checksum_wait_s=NEVER_S) as (reports, watcher):
        path, other = tmp_path / "m" / "a.pt", tmp_path / "m" / "b.pt"
        path.write_bytes(b"x")
        (tmp_path / ".b").write_bytes(b"y")
        (tmp_path / ".b").rename(other)  # that it is complete does not replace the checksum
        sidecar_of(other).write_text("0" * 64)
        assert await reports.name() == "b.pt"
        assert reports.drops.empty()
        sidecar_of(path).write_text("")
        drop = await reports.drop()
        # A checksum that does not fit is not final yet: it may be in the middle of being written.
        assert (drop.path, drop.settled_by, drop.quiet) == (path, "sidecar", False)
        watcher.release(path)
        assert (await reports.drop()).quiet


@run
async def test_a_checksum_that_comes_too_late_has_the_file_reported_again(tmp_path):
    async with watching(tmp_path, checksum_wait_s=SETTLE_S) as (reports, watcher):
        path = tmp_path / "m" / "a.pt"
        path.write_bytes(b"x")
        assert (await reports.drop()).quiet
        sidecar_of(path).write_text("0" * 64)
        assert (await reports.drop()).settled_by == "sidecar"
        watcher.release(path)
        assert (await reports.drop()).quiet  # and final, if it does not fit


@run
async def test_the_wait_for_a_checksum_ends(tmp_path):
    async with watching(tmp_path, checksum_wait_s=3 * SETTLE_S) as (reports, _):
        start = now()
        (tmp_path / "m" / "a.pt").write_bytes(b"x")
        (tmp_path / "m" / "gone.pt").write_bytes(b"x")
        (tmp_path / "m" / "gone.pt").unlink()
        assert (await reports.drop()).quiet
        assert elapsed(start) >= 4 * SETTLE_S  # quiet first, then the wait
        assert reports.drops.empty()


@run
async def test_a_file_waits_for_its_signature_and_is_not_looked_into(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watcher_module, "inspect", None)  # only files of models without keys are inspected
        await a_file_waits_for_its_signature(tmp_path)


async def a_file_waits_for_its_signature(tmp_path):
    async with watching(tmp_path, signature_wait_s={"m": NEVER_S}) as (reports, watcher):
        path = tmp_path / "m" / "a.pt"
        path.write_bytes(b"x")
        await until_listed(watcher)
        assert watcher.unclaimed[0]["reason"] == f"it waits up to {NEVER_S:g} s for a.pt.sig: m has trust.keys"
        assert reports.drops.empty()
        rename_into(signature_of(path), b"{}")
        drop = await reports.drop()
        # It may be in the middle of being written, as a checksum may.
        assert (drop.path, drop.settled_by) == (path, "sidecar")
        watcher.release(path)
        assert (await reports.drop()).quiet


def rename_into(path, data):
    """Write a file in one step, so that no scan sees a part of it."""
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(data)
    hidden.rename(path)


async def until_listed(watcher):
    while not watcher.unclaimed:
        await asyncio.sleep(0.01)


@run
async def test_another_signature_has_the_file_reported_again(tmp_path):
    async with watching(tmp_path, signature_wait_s={"m": 0}) as (reports, _):
        path = tmp_path / "m" / "a.pt"
        path.write_bytes(b"x")
        assert (await reports.drop()).quiet  # without a signature, to be rejected
        for text in ("first", "second"):
            rename_into(signature_of(path), text.encode())
            assert (await reports.drop()).path == path
        assert reports.drops.empty()


@run
async def test_a_file_is_cut_off_while_its_signature_promises_more(tmp_path):
    (tmp_path / ".keys").mkdir()
    options = {"signature_wait_s": {"m": NEVER_S}, "settle_max_s": NEVER_S}
    async with watching(tmp_path, **options) as (reports, watcher):
        path = tmp_path / "m" / "a.pt"
        signature_of(path).write_bytes(Signer(tmp_path / ".keys", "key").signature(b"weights", "m", 1))
        rename_into(path, b"wei")
        assert not (await reports.drop()).quiet  # the claim finds it too short, and releases it
        watcher.release(path)
        await until_listed(watcher)
        assert "3 bytes are there, a.pt.sig promises 7" in watcher.unclaimed[0]["reason"]
        rename_into(path, b"weights")
        assert (await reports.drop()).size == 7


@run
async def test_signatures_of_a_model_without_keys_are_logged_once(tmp_path):
    lines = io.StringIO()
    handler, logger = logging.StreamHandler(lines), logging.getLogger("service.intake.watcher")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    async with watching(tmp_path) as (reports, _):
        signature = tmp_path / "m" / "a.pt.sig"
        signature.write_bytes(b"{}")
        for name in ("a.pt", "b.pt"):
            (tmp_path / "m" / name).write_bytes(b"x")
            assert await reports.name() == name
        assert reports.refusals.empty()
    logger.removeHandler(handler)
    logger.setLevel(level)
    logged = [line for line in lines.getvalue().splitlines() if "a.pt.sig" in line]
    assert logged == [f"{signature} is ignored: model m has no trust.keys to check it with"]


@run
async def test_a_hard_link_is_found(tmp_path):
    async with watching(tmp_path) as (reports, _):
        (tmp_path / ".original").write_bytes(b"x")
        os.link(tmp_path / ".original", tmp_path / "m" / "a.pt")
        assert await reports.name() == "a.pt"


@run
async def test_what_lay_there_before_is_found_in_the_order_it_came(tmp_path):
    (tmp_path / "m").mkdir()
    for age, name in enumerate(["new.pt", "old.pt"]):
        (tmp_path / "m" / name).write_bytes(b"x")
        os.utime(tmp_path / "m" / name, (1000 - age, 1000 - age))
    async with watching(tmp_path) as (reports, _):
        assert [await reports.name(), await reports.name()] == ["old.pt", "new.pt"]


@run
async def test_ignored_names_are_never_told(tmp_path):
    async with watching(tmp_path) as (reports, _):
        for name in (".a.pt", "a.pt.part", "~syncthing~a.pt", ".a.pt.Xy12Zw"):
            (tmp_path / "m" / name).write_bytes(b"x")
        (tmp_path / "m" / "z.pt").write_bytes(b"x")
        assert await reports.name() == "z.pt"
        assert reports.drops.empty()


@run
async def test_a_changed_or_released_file_is_told_again(tmp_path):
    async with watching(tmp_path) as (reports, watcher):
        path = tmp_path / "m" / "a.pt"
        path.write_bytes(b"x")
        first = await reports.drop()
        path.write_bytes(b"xy")
        second = await reports.drop()
        assert second.size == 2
        assert second.seen >= first.seen + SETTLE_S
        watcher.release(path)
        assert (await reports.drop()).size == 2


@run
async def test_a_released_file_is_told_again_only_when_it_is_quiet(tmp_path):
    async with watching(tmp_path, settle_s=0.5) as (reports, watcher):
        path = tmp_path / "m" / "a.pt"
        sidecar_of(path).write_text("0" * 64)
        path.write_bytes(b"x")
        assert (await reports.drop()).settled_by == "sidecar"
        watcher.release(path)
        start = now()
        assert (await reports.drop()).settled_by == "quiet"
        assert elapsed(start) >= 0.5


@run
async def test_a_name_that_was_free_in_between_is_another_file(tmp_path):
    async with watching(tmp_path) as (reports, _):
        path, twin = tmp_path / "m" / "a.pt", tmp_path / ".twin"
        path.write_bytes(b"x")
        await reports.drop()
        path.rename(twin)
        (tmp_path / "m" / "b.pt").write_bytes(b"x")  # when it is reports, the name was seen to be free
        assert await reports.name() == "b.pt"
        twin.rename(path)
        assert await reports.name() == "a.pt"


@run
async def test_a_folder_that_is_removed_and_created_again_goes_on(tmp_path):
    async with watching(tmp_path) as (reports, _):
        shutil.rmtree(tmp_path / "m")
        await reports.until_up_is(False)
        (tmp_path / "m").mkdir()
        await reports.until_up_is(True)
        (tmp_path / "m" / "a.pt").write_bytes(b"x")
        assert await reports.name() == "a.pt"
        assert await asyncio.wait_for(reports.rebuilt.get(), DEADLINE_S) == 1


@run
async def test_the_whole_drop_folder_may_vanish_and_come_back(tmp_path):
    root = tmp_path / "drop"
    async with watching(root) as (reports, _):
        shutil.rmtree(root)
        await reports.until_up_is(False)
        (root / "m").mkdir(parents=True)
        (root / "m" / "a.pt").write_bytes(b"x")
        assert await reports.name() == "a.pt"
        await reports.until_up_is(True)


@run
async def test_a_removed_folder_is_created_again_after_a_while(tmp_path):
    async with watching(tmp_path, rescan_s=0.3) as (reports, _):
        (tmp_path / "m").rmdir()
        await reports.until_up_is(False)
        await reports.until_up_is(True)
        assert (tmp_path / "m").is_dir()


@run
async def test_what_no_event_tells_the_rescan_finds(tmp_path):
    """As after an overflow of the kernel's queue, and on network filesystems."""
    async with watching(tmp_path, rescan_s=0.3) as (reports, watcher):
        watcher._watches.close()  # from here on it is deaf
        (tmp_path / "m" / "a.pt").write_bytes(b"x")
        assert await reports.name() == "a.pt"


@run
async def test_without_events_it_looks_by_itself(tmp_path):
    async with watching(tmp_path, mode="poll", rescan_s=0.3) as (reports, watcher):
        assert watcher._watches is None
        (tmp_path / "m" / "a.pt").write_bytes(b"x")
        assert await reports.name() == "a.pt"


WATCH_SCRIPT = """
import asyncio, sys
from pathlib import Path
from service.intake.drop_folder import DropFolder
from service.intake.watcher import Watcher, WatchOptions

async def main():
    def report(drop):
        print(drop.path.name, flush=True)

    up = lambda up: print("up", flush=True)
    watcher = Watcher(DropFolder(Path(sys.argv[1]), ["m"], 1 << 30), WatchOptions(0.2, 600), on_found=report,
                      on_health=up)
    await watcher.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_an_overflow_of_the_queue_loses_no_file(tmp_path):
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 20_000:
        pytest.skip(f"the queue of this machine holds {limit} events, too many to overflow in a test")
    script = [sys.executable, "-c", WATCH_SCRIPT, tmp_path]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            assert watcher.stdout.readline() == "up\n"
            watcher.send_signal(signal.SIGSTOP)  # nobody reads the queue
            one, two = tmp_path / "m" / ".one", tmp_path / "m" / ".two"
            one.touch()
            for _ in range(limit // 4 + 1000):  # four events each
                one.rename(two)
                two.rename(one)
            (tmp_path / "m" / "lost.pt").write_bytes(b"x")  # its events find no room
            watcher.send_signal(signal.SIGCONT)
            while (line := watcher.stdout.readline()) != "lost.pt\n":
                assert line, "the watcher ended"
        finally:
            watcher.kill()


@run
async def test_refusals_are_told_once(tmp_path):
    async with watching(tmp_path, max_bytes=10, rescan_s=0.1) as (reports, _):
        (tmp_path / "m" / "large.pt").write_bytes(b"x" * 11)
        (tmp_path / "m" / "link.pt").symlink_to("/etc/passwd")
        codes = {(await asyncio.wait_for(reports.refusals.get(), DEADLINE_S)).code for _ in range(2)}
        assert codes == {"too_large", "not_a_file"}
        (tmp_path / "m" / "a.pt").write_bytes(b"x")
        assert await reports.name() == "a.pt"  # several rescans later
        assert reports.refusals.empty()


@run
async def test_two_models_are_told_apart(tmp_path):
    async with watching(tmp_path, models=("m", "n")) as (reports, _):
        (tmp_path / "n" / "a.pt").write_bytes(b"x")
        assert (await reports.drop()).model == "n"


@run
async def test_a_listener_that_fails_does_not_end_it(tmp_path):
    async with watching(tmp_path) as (reports, watcher):
        watcher._on_found = lambda drop: 1 / 0 if drop.path.name == "bad.pt" else reports.drops.put_nowait(drop)
        (tmp_path / "m" / "bad.pt").write_bytes(b"x")
        (tmp_path / "m" / "good.pt").write_bytes(b"x")
        assert await reports.name() == "good.pt"


@run
async def test_a_stop_ends_its_threads_and_can_come_twice(tmp_path):
    import threading

    before = threading.active_count()
    async with watching(tmp_path) as (_, watcher):
        assert threading.active_count() > before
        await watcher.stop()
        await watcher.stop()
        names = [thread.name for thread in threading.enumerate() if "asyncio" not in thread.name]
        assert len(names) <= before


@run
async def test_a_drop_folder_that_cannot_be_made_is_told_at_the_start(tmp_path):
    watcher = Watcher(DropFolder(tmp_path / "no" / "drop", ["m"], 1), WatchOptions(1, 1), on_found=lambda found: None)
    with pytest.raises(FileNotFoundError):
        await watcher.start()


def checkpoint():
    """The bytes of a whole checkpoint."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(100)}, buffer)
    return buffer.getvalue()


def reasons(watcher):
    return {entry["path"].partition("/")[2]: entry["reason"] for entry in watcher.unclaimed}


async def until(condition):
    async def wait():
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), DEADLINE_S)


@run
async def test_a_writer_that_pauses_is_waited_for_as_long_as_it_has_the_file_open(tmp_path):
    async with watching(tmp_path) as (reports, watcher):
        with (tmp_path / "m" / "a.pt").open("wb") as file:
            file.write(b"no zip, so that nothing else says that it is unfinished")
            file.flush()
            await until(lambda: "m/a.pt" in reasons(watcher))
            assert "a process has it open for writing; waiting up to 3600 s" in reasons(watcher)["m/a.pt"]
            assert reports.drops.empty()
        drop = await reports.drop()  # its end is an event
        assert (drop.path.name, drop.truncated, drop.settled_by) == ("a.pt", None, "quiet")
        await until(lambda: reasons(watcher) == {})


@run
async def test_a_file_that_is_cut_off_is_waited_for_until_its_rest_comes(tmp_path):
    async with watching(tmp_path) as (reports, watcher):
        data, path = checkpoint(), tmp_path / "m" / "a.pt"
        path.write_bytes(data[:-100])
        await until(lambda: "m/a.pt" in reasons(watcher))
        assert "it is cut off: its zip has no end" in reasons(watcher)["m/a.pt"]
        with path.open("ab") as file:
            file.write(data[-100:])
        assert (await reports.drop()).truncated is None


@run
async def test_an_empty_file_is_waited_for_as_an_upload_that_has_just_begun(tmp_path):
    async with watching(tmp_path) as (reports, watcher):
        path = tmp_path / "m" / "a.pt"
        path.touch()
        await until(lambda: "m/a.pt" in reasons(watcher))
        assert "it is cut off: 0 bytes are there; waiting up to 3600 s" in reasons(watcher)["m/a.pt"]
        path.write_bytes(checkpoint())
        assert (await reports.drop()).truncated is None


@run
async def test_a_file_that_stays_cut_off_is_given_up(tmp_path):
    async with watching(tmp_path, settle_max_s=3 * SETTLE_S) as (reports, watcher):
        start = now()
        data = checkpoint()
        (tmp_path / "m" / "a.pt").write_bytes(data[:-100])
        drop = await reports.drop()
        assert drop.truncated == f"its zip has no end: {len(data) - 100} bytes are there, its tensors alone need 400"
        assert elapsed(start) >= 3 * SETTLE_S
        await until(lambda: reasons(watcher) == {})


@run
async def test_a_rename_and_a_checksum_skip_the_wait_for_an_end(tmp_path):
    async with watching(tmp_path, settle_s=NEVER_S) as (reports, _):
        (tmp_path / ".a").write_bytes(checkpoint()[:-100])
        (tmp_path / ".a").rename(tmp_path / "m" / "a.pt")
        assert (await reports.drop()).settled_by == "rename"
        sidecar_of(tmp_path / "m" / "b.pt").write_text("0" * 64)
        (tmp_path / "m" / "b.pt").write_bytes(checkpoint()[:-100])
        assert (await reports.drop()).settled_by == "sidecar"


@run
async def test_of_a_whole_run_the_best_file_is_taken_once_all_of_it_is_there(tmp_path):
    async with watching(tmp_path, rescan_s=0.1) as (reports, watcher):
        weights = tmp_path / "m" / "exp" / "weights"
        weights.mkdir(parents=True)
        (weights / "best.pt").write_bytes(checkpoint())
        with (weights / "last.pt").open("wb") as last:
            await until(lambda: "m/exp/weights/best.pt" in reasons(watcher))
            assert reports.drops.empty()
            last.write(checkpoint())
        (tmp_path / "m" / "exp" / "results.csv").write_text("epoch,loss\n")
        drop = await reports.drop()
        assert (drop.model, drop.name, drop.run) == ("m", "exp/weights/best.pt", tmp_path / "m" / "exp")
        note_taken(drop.run, "weights/best.pt", drop.fingerprint, "ab" * 32)
        drop.path.unlink()
        await until(lambda: "m/exp" in reasons(watcher))
        assert reasons(watcher)["m/exp"].startswith("weights/best.pt of it was taken")
        assert reports.drops.empty()


@run
async def test_a_run_that_is_released_has_to_be_quiet_again(tmp_path):
    async with watching(tmp_path, settle_s=0.5, rescan_s=0.1) as (reports, watcher):
        (tmp_path / "m" / "exp").mkdir()
        (tmp_path / "m" / "exp" / "a.pt").write_bytes(checkpoint())
        drop = await reports.drop()
        watcher.release(drop.path)
        start = now()
        assert (await reports.drop()).name == "exp/a.pt"
        assert elapsed(start) >= 0.5


@run
async def test_what_is_not_taken_is_listed_and_logged_once(tmp_path):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("service.intake.watcher").addHandler(handler)
    try:
        async with watching(tmp_path, models=("m", "n"), rescan_s=0.1) as (reports, watcher):
            (tmp_path / "best.pt").write_bytes(b"of no model")
            (tmp_path / "typo").mkdir()
            (tmp_path / "m" / "README.txt").write_text("how to use")
            (tmp_path / "m" / "exp").mkdir()
            await until(lambda: len(watcher.unclaimed) == 4)
            kinds = {entry["path"].partition("/")[2]: entry["kind"] for entry in watcher.unclaimed}
            assert kinds == {"best.pt": "file", "typo": "folder", "m/README.txt": "file", "m/exp": "folder"}
            since = watcher.unclaimed[0]["since"]
            (tmp_path / "n" / "a.pt").write_bytes(b"x")
            assert await reports.name() == "a.pt"  # several rescans later
            assert watcher.unclaimed[0]["since"] == since
            for name in ("best.pt", "typo", "README.txt", "exp"):
                assert sum(f"{name} stays in the drop folder" in record for record in records) == 1, name
            shutil.rmtree(tmp_path / "typo")
            await until(lambda: len(watcher.unclaimed) == 3)
            assert reports.drops.empty()
            assert reports.refusals.empty()
    finally:
        logging.getLogger("service.intake.watcher").removeHandler(handler)


@run
async def test_a_file_without_the_name_of_a_checkpoint_is_taken_for_its_contents(tmp_path):
    async with watching(tmp_path) as (reports, watcher):
        path = tmp_path / "m" / "weights"
        path.write_text("not yet")
        await until(lambda: "m/weights" in reasons(watcher))
        path.write_bytes(checkpoint())
        assert await reports.name() == "weights"
        await until(lambda: reasons(watcher) == {})


@run
async def test_a_released_file_can_be_left_alone_for_a_while(tmp_path):
    async with watching(tmp_path, rescan_s=0.1) as (reports, watcher):
        (tmp_path / "m" / "a.pt").write_bytes(b"x")
        drop = await reports.drop()
        start = now()
        watcher.release(drop.path, after_s=5 * SETTLE_S)
        (tmp_path / "m" / "b.pt").write_bytes(b"x")
        assert await reports.name() == "b.pt"  # others are not held up
        assert await reports.name() == "a.pt"
        assert elapsed(start) >= 5 * SETTLE_S


@run
async def test_a_file_that_arrives_in_pieces_is_logged_once(tmp_path):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    log = logging.getLogger("service.intake.watcher")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        async with watching(tmp_path, rescan_s=0.05) as (reports, watcher):
            data, path = checkpoint(), tmp_path / "m" / "a.pt"
            path.write_bytes(data[:200])
            for size in (300, 400):
                await until(lambda: "m/a.pt" in reasons(watcher))
                path.write_bytes(data[:size])
                await until(lambda size=size: f"{size} bytes are there" in reasons(watcher).get("m/a.pt", ""))
            path.write_bytes(data)
            assert await reports.name() == "a.pt"
        assert sum("is waited for" in record for record in records) == 1
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@run
async def test_what_an_upload_left_behind_is_removed(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watcher_module, "Temporaries", partial(Temporaries, abandoned_s=SETTLE_S))
        async with watching(tmp_path, rescan_s=0.05):
            abandoned = temporary_in(tmp_path / "m")
            abandoned.write_bytes(b"half")
            await until(lambda: not abandoned.exists())
