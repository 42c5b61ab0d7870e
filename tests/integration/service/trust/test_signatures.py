"""What is accepted of a dropped and of a claimed file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edged.errors import DowngradeError, RejectedError, SignatureError, UnsignedError
from service.config.load import CalibrationConfig, ModelConfig, TrustConfig
from service.journal.holds import Holds
from service.journal.states import State
from service.journal.store import Journal
from service.journal.update import Hold, Update
from service.system.disk_thread import Disk
from service.trust.signatures import CODES, Signatures
from tests.support.signing import Signer

DATA = b"weights"
SHA256 = "0" * 64


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, Signer]:
    folder = tmp_path_factory.mktemp("keys")
    return Signer(folder, "old"), Signer(folder, "new")


@pytest.fixture
def holds(tmp_path: Path) -> Iterator[Holds]:
    """The highest version of the model is 8."""
    journal, disk = Journal(tmp_path / "journal.db"), Disk()
    holds = Holds(journal, disk)

    async def main() -> None:
        await holds.load()
        await holds.raise_version("shelf", 8)

    asyncio.run(main())
    yield holds
    journal.close()
    disk.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    path.write_bytes(DATA)
    return path


def model(*signers: Signer, **trust: bool) -> ModelConfig:
    keys = tuple(signer.key for signer in signers)
    return ModelConfig(name="shelf", calibration=CalibrationConfig(dir=Path()), trust=TrustConfig(keys=keys, **trust))


def claimed(file: Path, signed: object) -> Update:
    digest = getattr(getattr(signed, "statement", None), "sha256", SHA256)
    update = Update(1, "shelf", State.CLAIMED, file.name, len(DATA), digest, None, None, 1, None, None, 0.0, 0.0)
    return replace(update, signature=getattr(signed, "signature", None))


def test_a_model_without_keys_needs_no_signature(holds: Holds, file: Path) -> None:
    file.with_name("best.pt.sig").write_text("anything")
    assert Signatures(holds).of_drop(file, model()) is None
    Signatures(holds).of_claimed(claimed(file, None), model())


def test_what_was_signed_is_returned_with_the_key(holds: Holds, file: Path, signers: tuple[Signer, Signer]) -> None:
    envelope = signers[1].write(file, "shelf", 9).read_text()
    signed = Signatures(holds).of_drop(file, model(*signers, refuse_downgrade=True))
    assert signed is not None
    assert (signed.name, signed.statement.version, signed.statement.file_bytes) == ("best.pt.sig", 9, len(DATA))
    assert vars(signed.signature) == {"version": 9, "key": "new.pub", "key_id": signers[1].key.id, "envelope": envelope}
    Signatures(holds).of_claimed(claimed(file, signed), model(*signers, refuse_downgrade=True))


@pytest.mark.parametrize(
    ("signer", "name", "version", "error", "reason"),
    [
        (None, "shelf", 9, UnsignedError, "`edged sign best.pt --model shelf --version N --key FILE`"),
        (1, "shelf", 9, SignatureError, "by no accepted key"),
        (0, "cart", 9, SignatureError, "signed for model cart, and the file was dropped for shelf"),
        (0, "shelf", 7, DowngradeError, "says version 7, and version 8 of shelf was committed"),
    ],
)
def test_what_is_not_accepted_is_refused_in_a_line(
    holds: Holds,
    file: Path,
    signers: tuple[Signer, Signer],
    signer: int | None,
    name: str,
    version: int,
    error: type[RejectedError],
    reason: str,
) -> None:
    if signer is not None:
        signers[signer].write(file, name, version)
    with pytest.raises(error, match=reason) as raised:
        Signatures(holds).of_drop(file, model(signers[0], refuse_downgrade=True))
    assert "\n" not in str(raised.value)
    assert raised.value.code in CODES


def test_the_same_version_is_no_downgrade_and_an_older_one_may_be_allowed(
    holds: Holds, file: Path, signers: tuple[Signer, Signer]
) -> None:
    signers[0].write(file, "shelf", 8)
    assert Signatures(holds).of_drop(file, model(signers[0], refuse_downgrade=True)) is not None
    signers[0].write(file, "shelf", 1)
    assert Signatures(holds).of_drop(file, model(signers[0])) is not None


def test_a_claimed_file_is_checked_with_the_keys_in_force(
    holds: Holds, file: Path, signers: tuple[Signer, Signer]
) -> None:
    signers[0].write(file, "shelf", 8)
    signatures, strict = Signatures(holds), model(signers[0], refuse_downgrade=True)
    update = claimed(file, signatures.of_drop(file, strict))
    signatures.of_claimed(update, strict)
    with pytest.raises(SignatureError, match="by no accepted key"):
        signatures.of_claimed(update, model(signers[1]))
    with pytest.raises(UnsignedError, match="was claimed without a signature"):
        signatures.of_claimed(claimed(file, None), strict)
    with pytest.raises(SignatureError, match="is of another file"):
        signatures.of_claimed(replace(update, sha256="0" * 64), strict)
    holds._holds["shelf"] = Hold(highest_version=9)  # another update was committed while this one waited
    with pytest.raises(DowngradeError, match="version 9 of shelf was committed"):
        signatures.of_claimed(update, strict)


def test_a_signature_of_another_program_is_accepted(holds: Holds, file: Path, signers: tuple[Signer, Signer]) -> None:
    """It has other blanks, and no hint at the key."""
    path = signers[0].write(file, "shelf", 8)
    text = path.read_text().replace(signers[0].key.id, "").replace("\n", "")
    path.write_text(text)
    signed = Signatures(holds).of_drop(file, model(signers[0]))
    assert signed is not None
    assert (signed.signature.key_id, signed.signature.envelope) == (signers[0].key.id, text)
