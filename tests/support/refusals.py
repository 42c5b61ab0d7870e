"""What every refusal of a checkpoint has in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import CheckpointError
from edged.models.checkpoint import read_checkpoint


def refused(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """Return the reason, which must be one printable line that starts with the file's name."""
    with pytest.raises(kind) as caught:
        read_checkpoint(path)
    reason = str(caught.value)
    assert reason.startswith(f"{path.name}: ")
    assert reason.isprintable()
    assert len(reason) < 400
    return reason
