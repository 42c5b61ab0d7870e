"""The signature file: an envelope of DSSE, version 1, as JSON. Pure; it knows nothing of cryptography.

DSSE (https://github.com/secure-systems-lab/dsse) signs the payload together with its type, in an encoding that is not
JSON, so nothing has to be brought into a canonical form before the signature is checked. It holds any number of
signatures.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from edged.errors import SignatureError
from edged.signing.statement import PAYLOAD_TYPE, read_object

MAX_FILE_BYTES = 64 << 10
MAX_SIGNATURES = 16
_MAX_KEY_ID = 256  # characters


@dataclass(frozen=True)
class Signature:
    """One signature of an envelope.

    Attributes:
        key_id: ID of the key by which it claims to be made; a hint, which is not signed.
        value: The signature.
    """

    key_id: str
    value: bytes


@dataclass(frozen=True)
class Envelope:
    """A payload with its signatures.

    Attributes:
        payload: The statement, as it was signed.
        signatures: At least one signature.
    """

    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def signed_bytes(self) -> bytes:
        """Return what the signatures are of: DSSE's pre-authentication encoding of type and payload."""
        return signed_bytes(self.payload)

    def to_json(self) -> bytes:
        """Return the contents of the signature file."""
        signatures = [{"keyid": each.key_id, "sig": _encode(each.value)} for each in self.signatures]
        envelope = {"payloadType": PAYLOAD_TYPE, "payload": _encode(self.payload), "signatures": signatures}
        return (json.dumps(envelope, indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Envelope:
        """Read what `to_json` returns, or an envelope that another program has written.

        Raises:
            SignatureError: It is no envelope of a statement; the message goes on after the name of the file.
        """
        if len(data) > MAX_FILE_BYTES:
            raise SignatureError(f"it is over {MAX_FILE_BYTES >> 10} KiB")
        envelope = read_object(data, "it")
        if envelope.get("payloadType") != PAYLOAD_TYPE:
            raise SignatureError(f"its payloadType is {envelope.get('payloadType')!r:.80}, not {PAYLOAD_TYPE}")
        listed = envelope.get("signatures")
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
            raise SignatureError(f"it must have 1 to {MAX_SIGNATURES} signatures")
        return cls(_decode(envelope.get("payload"), "payload"), tuple(_signature(each) for each in listed))


def signed_bytes(payload: bytes) -> bytes:
    """Return what is signed of a payload: DSSE's pre-authentication encoding of its type and itself."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _signature(data: Any) -> Signature:
    if not isinstance(data, dict):
        raise SignatureError("one of its signatures is no JSON object")
    key_id = data.get("keyid", "")
    if not isinstance(key_id, str) or len(key_id) > _MAX_KEY_ID:
        raise SignatureError(f"a keyid is no text of at most {_MAX_KEY_ID} characters")
    return Signature(key_id, _decode(data.get("sig"), "sig"))


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: Any, key: str) -> bytes:
    """Decode base64 in its one exact spelling: unused bits of the last character must be zero."""
    try:
        if not isinstance(text, str):
            raise TypeError
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise SignatureError(f"its {key} is not base64") from None
    if _encode(data) != text:
        raise SignatureError(f"its {key} is not base64 in its exact spelling")
    return data
