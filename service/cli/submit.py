"""`edged submit`: put a file into the drop folder in one step, and follow its update."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edged.errors import (
    AccessError,
    CheckpointError,
    DeferredError,
    EdgedError,
    NotReadyError,
    RejectedError,
    StateError,
    UnavailableError,
    UsageError,
)
from edged.signing.verification import read_signature, signature_of, unsigned_error
from edged.spelling import names_to_choose
from service.client import DaemonClient
from service.intake.content import is_checkpoint
from service.intake.drop_folder import is_ignored, write_beside, write_sidecar
from service.intake.temporaries import temporary_in
from service.journal.states import ENDS, State
from service.journal.update import PAUSED, PINNED
from service.units import printable

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2
# Exit code of `edged submit --wait`, by the state that the update ended in.
EXIT_CODES = {
    State.COMMITTED: 0,
    State.REJECTED: RejectedError.exit_code,
    State.FAILED: EdgedError.exit_code,
    State.SUPERSEDED: EdgedError.exit_code,
    State.CANCELLED: EdgedError.exit_code,
    State.ROLLED_BACK: 5,
    State.DEFERRED: DeferredError.exit_code,
}


def submit(client: DaemonClient, file: Path, model: str) -> dict[str, Any]:
    """Copy `file`, and its signature if it has one, into the drop folder of `model`, where a rename shows it complete.

    Returns:
        {"model", "file_name", "sha256", "bytes", "after"}: `after` is the id of the model's newest update before it.

    Raises:
        UsageError: There is no such file or model, or the daemon would ignore the name.
        CheckpointError: The file is no checkpoint by its name and its first bytes; the daemon would not take it.
        UnsignedError: It has no signature, and the model needs one.
        UnavailableError: No daemon answers.
        AccessError: The drop folder may not be written.
        StateError: It cannot be written.
    """
    if not file.is_file():
        raise UsageError(f"{file} is no file; give the path of a checkpoint")
    if is_ignored(file.name):
        raise UsageError(f"{file.name} looks like an unfinished file, which the daemon ignores; rename it")
    _check_contents(file)
    status = client.get("/edged/v1/status")
    names = [known["name"] for known in status["models"]]
    if model not in names:
        raise UsageError(f"no model {model!r}; {names_to_choose(model, names, 'configured:')}")
    newest = client.get(f"/edged/v1/updates?model={quote(model)}&limit=1")["updates"]
    after = newest[0]["id"] if newest else 0
    # A file of the same name that waits in the drop folder is replaced, and its update goes on with this one.
    if newest and newest[0].get("state") == State.DROPPED and newest[0]["file_name"] == printable(file.name):
        after -= 1
    signature = _signature(file)
    if signature is None and any(known["name"] == model and known.get("signed") for known in status["models"]):
        raise unsigned_error(str(file), model)
    with_checksum = bool(status.get("require_checksum"))
    digest, size = _drop(file, Path(status["drop_dir"], model), with_checksum, signature)
    return {"model": model, "file_name": printable(file.name), "sha256": digest, "bytes": size, "after": after}


def wait(
    client: DaemonClient,
    submitted: dict[str, Any],
    timeout_s: float | None,
    show: Callable[[dict[str, Any]], None],
    *,
    until_end: bool = False,
) -> dict[str, Any]:
    """Follow a submitted file until its update ends or is deferred.

    Args:
        client: The daemon.
        submitted: What `submit` returned.
        timeout_s: Most seconds to wait; None for no limit.
        show: Called with the update after each request.
        until_end: Keep waiting while it is deferred or waits for an operator.

    Returns:
        The update.

    Raises:
        NotReadyError: The time is over.
        UnavailableError: The daemon has gone.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    model = quote(submitted["model"])
    while True:
        listed = client.get(f"/edged/v1/updates?model={model}&limit=100")["updates"]
        mine = [u for u in listed if u["id"] > submitted["after"] and _is_of(u, submitted)]
        if mine:
            update: dict[str, Any] = mine[-1]  # the first after the submission
            show(update)
            if State.read(update["state"]) in ENDS:
                return update
            if not until_end and (update["state"] == State.DEFERRED or update.get("code") in (PINNED, PAUSED)):
                return update
        if end is not None and time.monotonic() > end:
            state = mine[-1]["state"] if mine else "not claimed"
            raise NotReadyError(f"{submitted['file_name']} is {state} after {timeout_s:g} s; see `edged status`")
        time.sleep(_POLL_S)


def exit_code(update: dict[str, Any]) -> int:
    """Return the exit code for `update`; one that waits for an operator counts as deferred."""
    return EXIT_CODES.get(State.read(update["state"]), EXIT_CODES[State.DEFERRED])


def _check_contents(file: Path) -> None:
    try:
        if is_checkpoint(file):
            return
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; give a file that you may read") from None
    raise CheckpointError(
        f"{file.name} is no checkpoint, by its name and its first bytes; give a .pt file, for example"
    )


def _is_of(update: dict[str, Any], submitted: dict[str, Any]) -> bool:
    sha256 = update.get("sha256")
    if sha256 is not None:
        return bool(sha256 == submitted["sha256"])
    return bool(update["file_name"] == submitted["file_name"])


def _signature(file: Path) -> bytes | None:
    try:
        return read_signature(signature_of(file))
    except OSError as error:
        raise UsageError(
            f"{signature_of(file)} cannot be read: {error.strerror}; give a regular file that you may read"
        ) from None


def _drop(file: Path, folder: Path, with_checksum: bool, signature: bytes | None) -> tuple[str, int]:
    temporary = temporary_in(folder)
    digest, size = hashlib.sha256(), 0
    try:
        source = file.open("rb")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; give a file that you may read") from None
    with source:
        try:
            with temporary.open("xb") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
                    size += len(chunk)
                os.fchmod(target.fileno(), 0o644)  # the daemon may run as another user
                os.fsync(target.fileno())
            if with_checksum:  # first: a file without it would be refused
                write_sidecar(folder / file.name, digest.hexdigest())
            if signature is not None:
                write_beside(signature_of(folder / file.name), signature)
            temporary.replace(folder / file.name)
        except PermissionError:
            raise AccessError(f"{folder} may not be written; run as a user that may write there") from None
        except FileNotFoundError:
            raise UnavailableError(f"{folder} does not exist here; run this where the daemon runs") from None
        except OSError as error:
            raise StateError(f"cannot write {folder}: {error.strerror}; free space there") from None
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
    return digest.hexdigest(), size
