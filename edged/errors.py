"""Every error a user can meet, each with a stable code.

The code is the metric label, the `code` of an HTTP body and of reason.json; the exit code is the command's.
"""

from __future__ import annotations

from typing import ClassVar


class EdgedError(Exception):
    """Base of all errors that edged raises on purpose. The message is one line and says what to do."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1


class UsageError(EdgedError):
    """The command line asks for something that does not exist or cannot be."""

    code = "usage"
    exit_code = 2


class RejectedError(EdgedError):
    """The input itself is at fault: trying again cannot help."""

    code = "rejected"
    exit_code = 3


class CheckpointError(RejectedError):
    """The file is not a readable checkpoint."""

    code = "checkpoint"


class UnsafeCheckpointError(CheckpointError):
    """The file asks for code to be run, or is built to exhaust the machine."""

    code = "unsafe_checkpoint"


class TooLargeError(CheckpointError):
    """The file, or what it would expand to, is over a limit."""

    code = "too_large"


class NonFiniteError(CheckpointError):
    """A tensor of the checkpoint holds NaN or infinity."""

    code = "non_finite"


class ArchitectureError(RejectedError):
    """The tensors fit no supported network, or not the one asked for."""

    code = "architecture"


class CalibrationError(RejectedError):
    """The calibration images, or what was computed from them, cannot be used."""

    code = "calibration"


class ImageError(RejectedError):
    """An encoded image cannot be decoded."""

    code = "image"


class GateError(RejectedError):
    """The quantized model failed a check that stands between it and the traffic."""

    code = "gate"


class ArtifactError(RejectedError):
    """A folder is not a readable artifact."""

    code = "artifact"


class NotReadyError(EdgedError):
    """What was asked for is not there yet."""

    code = "not_ready"
    exit_code = 4


class UnavailableError(EdgedError):
    """No daemon answers."""

    code = "unavailable"
    exit_code = 69


class DeviceError(EdgedError):
    """The device that was asked for is not there."""

    code = "device"
    exit_code = 69


class StateError(EdgedError):
    """State cannot be written: a full disk, a read-only folder."""

    code = "state"
    exit_code = 73


class DeferredError(EdgedError):
    """The device cannot do it now (memory, heat, disk); a later try may succeed."""

    code = "deferred"
    exit_code = 75


class MemoryLimitError(DeferredError):
    """The work does not fit into the memory it was given."""

    code = "memory"


class AccessError(EdgedError):
    """The caller may not do this."""

    code = "permission"
    exit_code = 77


class ConfigError(EdgedError):
    """The configuration file is wrong; the message lists every mistake with its line."""

    code = "config"
    exit_code = 78
