"""Decides whether the file of an update may be used: by its signature, where its model has `trust.keys`.

The signature is read and verified before the file is copied, and the file's digest is compared right after. So nothing
of a file is parsed, neither here nor in a worker, unless somebody with an accepted key has signed it for its model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.errors import DowngradeError, SignatureError, UnsignedError
from edged.signing.statement import Statement
from edged.signing.verification import SUFFIX, read_signature, signature_of, unsigned_error, verify
from service.config.load import ModelConfig
from service.journal.holds import Holds
from service.journal.update import Update, UpdateSignature
from service.trust.verifier import verified_by
from service.units import printable

# Codes of rejections that say something about the signature and the keys of their time, not about the file.
CODES = (UnsignedError.code, SignatureError.code, DowngradeError.code)


@dataclass(frozen=True)
class Signed:
    """An accepted signature.

    Attributes:
        name: Name of the signature file.
        statement: What is signed.
        signature: The signature as it is journaled.
    """

    name: str
    statement: Statement
    signature: UpdateSignature


class Signatures:
    """Checks signatures of dropped and of claimed files.

    Args:
        holds: Knows the highest version of each model that was committed.
    """

    def __init__(self, holds: Holds) -> None:
        self._holds = holds

    def of_drop(self, source: Path, model: ModelConfig) -> Signed | None:
        """Check the signature next to a dropped file, without reading the file. Blocks; call it in a thread.

        Args:
            source: Path of the file.
            model: Configuration of its model.

        Returns:
            What is signed, to be compared with the file; None if the model has no keys.

        Raises:
            UnsignedError: There is no signature.
            SignatureError: It cannot be read, is malformed, by no accepted key, or for another model.
            DowngradeError: It is of an older version than one that was committed.
            VerifierError: It cannot be verified now.
            OSError: The drop folder cannot be read.
        """
        if not model.trust.keys:
            return None
        path = signature_of(source)
        data = read_signature(path)
        if data is None:
            raise unsigned_error(printable(source.name), model.name)
        return self._check(data, printable(path.name), model)

    def of_claimed(self, update: Update, model: ModelConfig) -> None:
        """Check the journaled signature of a claimed file against the keys in force. Blocks; call it in a thread.

        Raises:
            UnsignedError: The file was claimed without one.
            SignatureError: It is by no key that is accepted now, or of another file.
            DowngradeError: A newer version was committed meanwhile.
            VerifierError: It cannot be verified now.
        """
        if not model.trust.keys:
            return
        if update.signature is None:
            raise UnsignedError(
                f"{update.file_name} was claimed without a signature, and {model.name} has trust.keys; sign it with"
                " `edged sign` and drop it again, with its signature"
            )
        name = update.file_name + SUFFIX
        signed = self._check(update.signature.envelope.encode(), name, model)
        if signed.statement.sha256 != update.sha256:
            raise SignatureError(f"{name} is of another file; drop both again")

    def _check(self, data: bytes, name: str, model: ModelConfig) -> Signed:
        verified = verify(data, name, model.trust.keys, verified_by)
        statement, key = verified.statement, verified.key
        if statement.model != model.name:
            raise SignatureError(
                f"{name} is signed for model {statement.model}, and the file was dropped for {model.name}; drop it"
                f" there, or sign it for {model.name}"
            )
        highest = self._holds.of(model.name).highest_version
        if model.trust.refuse_downgrade and highest is not None and statement.version < highest:
            raise DowngradeError(
                f"{name} says version {statement.version}, and version {highest} of {model.name} was committed; sign"
                f" the file as version {highest} or later, or set trust.refuse_downgrade: false"
            )
        signature = UpdateSignature(statement.version, key.name, key.id, data.decode())
        return Signed(name, statement, signature)
