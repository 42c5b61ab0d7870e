"""An update and its events, as read from the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.journal.states import State
from service.units import iso_time

PINNED, PAUSED = "pinned", "paused"  # codes of updates that wait for an operator

_TIMES = ("dropped_at", "updated_at")


_PARTS = ("swap", "shadow", "rollback")  # keys of a report in JSON; every other key belongs to the totals


@dataclass(frozen=True)
class UpdateReport:
    """What is known of an update's result. Each step of the update adds its part with `dataclasses.replace`.

    Attributes:
        totals: `totals` of the worker's report.json, and whatever another version of edged has written.
        swap: How the generation replaced the previous one, see `service.rollout.swap.Swap.record`; None before.
        shadow: Result of the comparison with the previous generation; None without one.
        rollback: How the generation was replaced by the previous one, like `swap`; None if it was not rolled back.
    """

    totals: Mapping[str, Any] = field(default_factory=dict)
    swap: Mapping[str, Any] | None = None
    shadow: Mapping[str, Any] | None = None
    rollback: Mapping[str, Any] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UpdateReport:
        """Return the report that `to_dict` has turned into `data`."""
        totals = {key: value for key, value in data.items() if key not in _PARTS}
        return cls(totals, **{key: data[key] for key in _PARTS if key in data})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: the totals, and next to them the parts that are known."""
        parts = {key: getattr(self, key) for key in _PARTS}
        return {**self.totals, **{key: part for key, part in parts.items() if part is not None}}


@dataclass(frozen=True)
class UpdateSignature:
    """The signature of a dropped file, as it was accepted.

    Attributes:
        version: Version of the model that was signed.
        key: Name of the file of the public key, as configured then.
        key_id: ID of the key, see `edged.signing.keys`.
        envelope: Contents of the signature file, with which it can be checked again.
    """

    version: int
    key: str
    key_id: str
    envelope: str

    def described(self) -> dict[str, Any]:
        """Return the version and the key, as JSON types."""
        return {"version": self.version, "key": self.key, "key_id": self.key_id}


@dataclass(frozen=True)
class Update:
    """A dropped file and its progress from the drop folder into service.

    Attributes:
        id: Number of the update; ascending, never reused.
        model: Model name.
        state: State that the update has reached.
        file_name: Name of the dropped file.
        file_bytes: Size of the file in bytes.
        sha256: Digest of the file's contents, hex; None before the file is claimed.
        key: Idempotency key, see ModelConfig.key; None before the file is claimed.
        generation: Number under which the result was published; None before.
        attempt: How often work on the update has begun: entries into CLAIMED, those after a restart included.
        code: Error code of the last problem; None if there was none.
        reason: One-line description of that problem.
        dropped_at: When the file was first seen, seconds since 1970.
        updated_at: When the update last changed, seconds since 1970.
        stages: Duration of each stage in seconds, by stage name.
        report: What is known of the result.
        signature: The accepted signature of the file; None if its model needs none.
    """

    id: int
    model: str
    state: State
    file_name: str
    file_bytes: int
    sha256: str | None
    key: str | None
    generation: int | None
    attempt: int
    code: str | None
    reason: str | None
    dropped_at: float
    updated_at: float
    stages: dict[str, float] = field(default_factory=dict)
    report: UpdateReport = field(default_factory=UpdateReport)
    signature: UpdateSignature | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; times as ISO 8601."""
        signature = None if self.signature is None else self.signature.described()
        plain = {"state": self.state.value, "report": self.report.to_dict(), "signature": signature}
        return {**vars(self), **plain} | {name: iso_time(getattr(self, name)) for name in _TIMES}


@dataclass(frozen=True)
class Hold:
    """What keeps files of a model from going live: an operator's instructions, and newer signed versions.

    Attributes:
        pinned: No other generation goes live.
        paused: No file is taken out of the drop folder.
        highest_version: Highest signed version that was committed; None if there was none.
    """

    pinned: bool = False
    paused: bool = False
    highest_version: int | None = None


@dataclass(frozen=True)
class Event:
    """One entry in the history of an update.

    Attributes:
        at: Seconds since 1970.
        state: State that the update entered. For a note without a transition, such as "crash", the state it was in.
        detail: Fields that were set along with the state.
    """

    at: float
    state: State
    detail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the time as ISO 8601."""
        return {"at": iso_time(self.at), "state": self.state.value, "detail": self.detail}
