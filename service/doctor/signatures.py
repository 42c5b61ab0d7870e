"""Check of the public keys that may sign checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from edged.signing.keys import all_shown
from service.config.load import Config
from service.doctor.check import FAIL, OK, Check, Machine
from service.trust.verifier import VerifierError, verified_by


def check_signatures(_: Machine, config: Config | None) -> Iterator[Check]:
    """Check, where a model has keys, that signatures can be verified; list the keys."""
    signed = [model for model in config.models if model.trust.keys] if config is not None else []
    if not signed:
        return
    keys = tuple({key.raw: None for model in signed for key in model.trust.keys})
    try:
        verified_by(b"", (b"",), keys)  # nobody has signed this; each key is loaded
    except VerifierError as error:
        fix = "`pip install --force-reinstall cryptography`; until then no signed checkpoint is taken"
        yield Check("signatures", FAIL, str(error), fix)
        return
    for model in signed:
        older = "refused" if model.trust.refuse_downgrade else "accepted"
        detail = f"{len(model.trust.keys)} key(s): {all_shown(model.trust.keys)}; older versions are {older}"
        yield Check(f"signatures of {model.name}", OK, detail)
