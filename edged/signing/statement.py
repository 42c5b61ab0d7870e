"""What is signed of a checkpoint: an in-toto statement, version 1, as JSON. Pure.

in-toto (https://github.com/in-toto/attestation) defines a subject with its digest, and a predicate whose type says what
its keys mean. Keys that are not known here are ignored, as it asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.errors import SignatureError, UsageError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://github.com/edged/edged/checkpoint/v1"

MAX_VERSION = 2**53 - 1  # the largest number that every JSON parser reads exactly
MAX_BYTES = MAX_VERSION  # of a file
MAX_NAME = 255  # characters of a model or of a file name

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Statement:
    """A statement about a checkpoint.

    Attributes:
        model: Model that the checkpoint is for.
        version: Version of the model, from 1 on; a larger number is newer.
        sha256: SHA-256 of the file's contents, hex.
        file_bytes: Size of the file in bytes.
        name: Name of the file when it was signed; it may be delivered under another one.

    Raises:
        UsageError: A value is impossible.
    """

    model: str
    version: int
    sha256: str
    file_bytes: int
    name: str = "checkpoint"

    def __post_init__(self) -> None:
        for what, text in (("model", self.model), ("name", self.name)):
            if not text or len(text) > MAX_NAME or not text.isprintable():
                raise UsageError(f"{what} has value {text!r:.80}; give 1 to {MAX_NAME} printable characters")
        if not 1 <= self.version <= MAX_VERSION:
            raise UsageError(f"version has value {self.version!r:.40}; give a whole number from 1 to {MAX_VERSION}")
        if not _SHA256.fullmatch(self.sha256):
            raise UsageError(f"sha256 has value {self.sha256!r:.80}; give 64 hex digits in lower case")
        if not 0 <= self.file_bytes <= MAX_BYTES:
            raise UsageError(f"file_bytes has value {self.file_bytes!r:.40}; give a whole number from 0 to {MAX_BYTES}")

    def to_json(self) -> bytes:
        """Return the statement as it is signed."""
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.name, "digest": {"sha256": self.sha256}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"model": self.model, "version": self.version, "bytes": self.file_bytes},
        }
        return json.dumps(statement).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Statement:
        """Read what `to_json` returns, or a statement of the same type that another program has written.

        Raises:
            SignatureError: It is no statement about a checkpoint; the message goes on after the name of the file.
        """
        statement = read_object(data, "its statement")
        for key, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
            if statement.get(key) != expected:
                raise SignatureError(f"its statement has {key} {statement.get(key)!r:.80}, not {expected}")
        try:
            (subject,) = statement["subject"]
            predicate = statement["predicate"]
            values = {
                "model": _of_type(predicate["model"], str),
                "version": _of_type(predicate["version"], int),
                "sha256": _of_type(subject["digest"]["sha256"], str),
                "file_bytes": _of_type(predicate["bytes"], int),
                "name": _of_type(subject["name"], str),
            }
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise SignatureError(f"its statement is incomplete or of other types: {error!r:.80}") from None
        except UsageError as error:
            raise SignatureError(f"its statement is impossible: {error}") from None


def read_object(data: bytes, what: str) -> Mapping[str, Any]:
    """Parse a JSON object strictly: keys once, no NaN.

    Args:
        data: JSON, of a size that was bounded.
        what: Name of the object in a message.

    Raises:
        SignatureError: It is no such object; the message goes on after the name of the file.
    """
    try:
        found = json.loads(data.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise SignatureError(f"{what} is not JSON") from None
    if not isinstance(found, dict):
        raise SignatureError(f"{what} is no JSON object")
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # two parsers could take different ones
        raise ValueError("a key is repeated")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:  # True is an int to Python, and no version
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value
