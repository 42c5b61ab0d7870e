"""All errors that a user can meet, each with a stable code.

The code is the metric label, the `code` of an HTTP body and of reason.json; the exit code is the command's.
"""

from __future__ import annotations

from typing import ClassVar


class EdgedError(Exception):
    """Base of all errors that edged raises on purpose. The message is one line and says what to do."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1


class UsageError(EdgedError):
    """An option or setting does not exist or has an impossible value."""

    code = "usage"
    exit_code = 2


class RejectedError(EdgedError):
    """The input itself is at fault; a retry cannot succeed."""

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


class UnsignedError(RejectedError):
    """The file has no signature, and its model needs one."""

    code = "unsigned"


class SignatureError(RejectedError):
    """The signature is malformed, was made by no accepted key, or is for another file or model."""

    code = "signature"


class DowngradeError(RejectedError):
    """The signature is for an older version than the highest one that was committed."""

    code = "downgrade"


class ArchitectureError(RejectedError):
    """The tensors fit no supported network, or not the requested one."""

    code = "architecture"


class CalibrationError(RejectedError):
    """The calibration images, or values computed from them, cannot be used."""

    code = "calibration"


class ImageError(RejectedError):
    """An encoded image cannot be decoded."""

    code = "image"


class GateError(RejectedError):
    """The quantized model failed a check that it must pass before it serves."""

    code = "gate"


class ArtifactError(RejectedError):
    """A folder is not a readable artifact."""

    code = "artifact"


class NotReadyError(EdgedError):
    """The requested object is not available yet."""

    code = "not_ready"
    exit_code = 4


class PinnedError(NotReadyError):
    """An operator wants the model to stay at its generation."""

    code = "pinned"


class UnavailableError(EdgedError):
    """No daemon answers."""

    code = "unavailable"
    exit_code = 69


class DeviceError(EdgedError):
    """The requested device is not available."""

    code = "device"
    exit_code = 69


class EngineError(EdgedError):
    """An engine cannot be built or loaded on this device; another one can compute the model."""

    code = "engine"
    exit_code = 69


class SandboxError(EdgedError):
    """The worker cannot be confined as the configuration asks for."""

    code = "sandbox"
    exit_code = 69


class StateError(EdgedError):
    """State cannot be written: a full disk, a read-only folder."""

    code = "state"
    exit_code = 73


class DeferredError(EdgedError):
    """The device cannot do the work now (memory, heat, disk); a later try may succeed."""

    code = "deferred"
    exit_code = 75


class MemoryLimitError(DeferredError):
    """The work does not fit into the memory it was given."""

    code = "memory"


class AccessError(EdgedError):
    """The caller lacks the permission."""

    code = "permission"
    exit_code = 77


class ConfigError(EdgedError):
    """The configuration file is wrong; the message lists every mistake with its line."""

    code = "config"
    exit_code = 78
