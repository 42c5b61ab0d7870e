"""`edged report`: an update in words or as a page, from the daemon, or from its state folder when none runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edged.errors import StateError, UnavailableError, UsageError
from edged.spelling import names_to_choose
from service.client import DaemonClient
from service.config.locate import find_config, find_socket
from service.reporting.data import gather, without_pictures

JSON = dict[str, Any]


def report(options: Namespace) -> int:
    """Show what one update did (`edged report UPDATE|MODEL`)."""
    from service.reporting.text import summary

    data = _fetch(options)
    page = _write_page(options, data)
    if options.json:
        sys.stdout.write(json.dumps({**without_pictures(data), "page": page}) + "\n")
    else:
        sys.stdout.write(summary(data, page or data.get("path")) + "\n")
    if options.open:
        _open(page or str(data["path"]))
    return 0


def _fetch(options: Namespace) -> JSON:
    try:
        client = DaemonClient(find_socket(options.socket, options.config))
        return client.get(f"/edged/v1/updates/{_update_id(client, options.update)}/report.json")
    except UnavailableError as unavailable:
        if options.socket:
            raise
        return _from_disk(options, unavailable)


def _update_id(client: DaemonClient, asked: str) -> int:
    if asked.isdecimal():
        return int(asked)
    from urllib.parse import quote

    updates = client.get(f"/edged/v1/updates?model={quote(asked, safe='')}&limit=1")["updates"]
    if not updates:
        raise _no_update(asked, [model["name"] for model in client.get("/edged/v1/status")["models"]])
    return int(updates[0]["id"])


def _from_disk(options: Namespace, unavailable: UnavailableError) -> JSON:
    """Read an update from the journal and the folders, without a daemon.

    Raises:
        UnavailableError: `unavailable`, where there is no journal.
        UsageError: There is no such update.
    """
    from edged.artifacts.store import ModelStore
    from service.config.load import load_config
    from service.journal.store import Journal
    from service.storage.paths import Paths

    path = find_config(options.config)
    if not path.exists():
        raise unavailable
    config = load_config(path)
    paths = Paths(config.state_dir)
    with _copy_of(paths.journal, unavailable) as copy:
        journal = Journal(copy)
        try:
            asked = options.update
            listed = [] if asked.isdecimal() else journal.find(model=asked, limit=1)
            if not asked.isdecimal() and not listed:
                raise _no_update(asked, [model.name for model in config.models])
            update_id = int(asked) if asked.isdecimal() else listed[0].id
            return gather(journal, ModelStore(paths.models), paths, update_id)
        finally:
            journal.close()


@contextlib.contextmanager
def _copy_of(journal: Path, unavailable: UnavailableError) -> Iterator[Path]:
    """Yield a copy to read: opening the original would write next to it, perhaps as another user than the daemon."""
    with tempfile.TemporaryDirectory(prefix="edged-") as folder:
        try:
            shutil.copyfile(journal, Path(folder, journal.name))
            log = journal.with_name(f"{journal.name}-wal")
            if log.exists():
                shutil.copyfile(log, Path(folder, log.name))
        except OSError as error:
            message = f"{unavailable}; and {journal} cannot be read: {error.strerror or error}"
            raise UnavailableError(message) from None
        yield Path(folder, journal.name)


def _write_page(options: Namespace, data: JSON) -> str | None:
    """Write the page where it was asked for, or, to be opened, where the browser can read it; return its path."""
    from service.reporting.page import render

    if options.output:
        target = Path(options.output)
    elif options.open and not _readable(data.get("path")):
        name = f"edged-report-{data['update']['id']}.html"
        target = Path(tempfile.mkdtemp(prefix="edged-"), name)
    else:
        return None
    try:
        target.write_text(render(data), encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {target}: {error.strerror or error}; choose another --output") from error
    return str(target.absolute())


def _readable(path: str | None) -> bool:
    try:
        return path is not None and Path(path).is_file()
    except OSError:  # a folder that this user may not enter
        return False


def _open(path: str) -> None:
    import webbrowser

    if not webbrowser.open(Path(path).absolute().as_uri()):
        raise UnavailableError(f"no browser here; copy {path} to a machine that has one")


def _no_update(asked: str, models: list[str]) -> UsageError:
    if asked in models:
        return UsageError(f"model {asked!r} has no updates yet; drop a checkpoint, see `edged status`")
    choices = names_to_choose(asked, models, "configured:")
    return UsageError(f"no update {asked!r:.80}: neither a number nor a model; {choices}")
