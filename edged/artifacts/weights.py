"""The file weights.safetensors: packed codes, grids and all tensors that are not quantized.

A quantized weight `name` is stored as `name.codes` (packed uint8), `name.scale` (float32 [rows]) and `name.zero_point`
(uint8 [rows]). Its bits and shape are in the file's metadata under "edged", as JSON.

A weight with power levels has `name.step` in place of `name.scale`, so that no older edged takes it for a uniform one,
and `name.exponent` (uint8 [rows], in sixteenths). Its metadata says `"levels": "power"`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edged.errors import ArtifactError, EdgedError
from edged.json_document import MALFORMED
from edged.quant.grid import QuantizedWeight
from edged.quant.pack import pack, packed_bytes, unpack
from edged.quant.power_grid import MOST_SIXTEENTHS, UNIFORM, PowerWeight
from edged.spec import Levels
from edged.spelling import one_line

_KEY = "edged"
# The format orders tensors by dtype, the widest first, then by name. These are the dtypes of state dicts.
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RANKED = list(_NAMES)
_PARTS = {
    Levels.UNIFORM.value: ("codes", "scale", "zero_point"),
    Levels.POWER.value: ("codes", "step", "zero_point", "exponent"),
}


def save_weights(path: Path, quantized: Mapping[str, QuantizedWeight], rest: Mapping[str, Tensor]) -> None:
    """Write one file, neither atomically nor synced; `write_artifact` ensures both.

    Args:
        path: Path of the file.
        quantized: Quantized weights by their names in the state dict. Not modified.
        rest: All other tensors of the state dict by name. Not modified.

    Raises:
        ArtifactError: A name of `rest` is also the name of a quantized weight or of one of its parts.
    """
    tensors: dict[str, Tensor] = {}
    layout: dict[str, dict[str, Any]] = {}
    for name, weight in quantized.items():
        parts = [pack(weight.codes.cpu(), weight.bits), weight.scale, weight.zero_point]
        layout[name] = {"bits": weight.bits, "shape": list(weight.shape)}
        if isinstance(weight, PowerWeight):
            parts.append(weight.exponent)
            layout[name]["levels"] = Levels.POWER.value
        tensors |= dict(zip(_tensor_names(name, layout[name]), parts, strict=True))
    if taken := sorted(set(rest) & (set(tensors) | set(layout))):
        raise ArtifactError(f"tensor {taken[0]!r} is both quantized and kept; pass it once")
    tensors |= rest
    # Cloned, because safetensors rejects tensors that share memory.
    owned = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    # `save_file` would make it readable by nobody else, unlike the other files of the artifact.
    path.write_bytes(save(owned, metadata={_KEY: json.dumps(layout)}))


def stored_bytes(state: Mapping[str, Tensor], bits: Mapping[str, int]) -> int:
    """Return the size of the file that `save_weights` would write, to the byte.

    Args:
        state: State dict; only names, shapes and dtypes are read.
        bits: Bits of each weight that is quantized, by its name in the state dict.
    """
    tensors: list[tuple[int, str, str, list[int], int]] = []  # rank, name, dtype, shape, bytes
    for name, value in state.items():
        if name not in bits:
            rank = _RANKED.index(value.dtype)
            tensors.append((rank, name, _NAMES[value.dtype], list(value.shape), value.nbytes))
            continue
        rows, packed = value.shape[0], packed_bytes(value.numel(), bits[name])
        codes, floats = (_RANKED.index(dtype) for dtype in (torch.uint8, torch.float32))
        tensors.append((codes, f"{name}.codes", _NAMES[torch.uint8], [packed], packed))
        tensors.append((codes, f"{name}.zero_point", _NAMES[torch.uint8], [rows], rows))
        tensors.append((floats, f"{name}.scale", _NAMES[torch.float32], [rows], 4 * rows))
    layout = {name: {"bits": width, "shape": list(state[name].shape)} for name, width in bits.items()}
    head: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(layout)}}
    end = 0
    for _, name, dtype, shape, size in sorted(tensors):
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    return 8 + -(-len(text) // 8) * 8 + end  # the length of the head, the head padded to 8 bytes, the tensors


def load_weights(path: Path) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Read a file that `save_weights` wrote.

    Returns:
        The quantized weights and all other tensors, by name.

    Raises:
        ArtifactError: The file is missing, damaged, or was not written by `save_weights`.
    """
    with _opened(path) as (file, layout):
        quantized = {name: _read(file, name, entry) for name, entry in layout.items()}
        taken = _taken(layout)
        rest = {name: file.get_tensor(name) for name in file.keys() if name not in taken}  # noqa: SIM118  # no dict
    return quantized, rest


def decoded_state(path: Path) -> dict[str, Tensor]:
    """Read and decode the state dict to float32, bit-identical to the evaluated one.

    The codes of only one weight are in memory at a time.

    Raises:
        ArtifactError: The file is missing, damaged, or was not written by `save_weights`.
    """
    with _opened(path) as (file, layout):
        state = {name: _read(file, name, entry).decode() for name, entry in layout.items()}
        taken = _taken(layout)
        return state | {name: file.get_tensor(name) for name in file.keys() if name not in taken}  # noqa: SIM118  # no dict


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a file and read its layout, turning any error of the block into an ArtifactError with the path."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {})[_KEY])
    except EdgedError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    except (OSError, SafetensorError, *MALFORMED) as error:
        raise ArtifactError(
            f"cannot read {path}: {one_line(str(error)):.200}; quantize the checkpoint again"
        ) from error


def _tensor_names(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Return the names of a weight's tensors, in the order of _PARTS."""
    levels = entry.get("levels", Levels.UNIFORM.value)
    if not isinstance(levels, str) or levels not in _PARTS:
        raise ArtifactError(
            f"weight {name!r} has levels {levels!r:.80}; this edged reads {' and '.join(_PARTS)},"
            " a newer one may have written it"
        )
    return [f"{name}.{part}" for part in _PARTS[levels]]


def _taken(layout: Mapping[str, Any]) -> set[str]:
    return {tensor for name, entry in layout.items() for tensor in _tensor_names(name, entry)}


def _read(file: Any, name: str, entry: Mapping[str, Any]) -> QuantizedWeight:
    bits, shape = int(entry["bits"]), tuple(int(size) for size in entry["shape"])
    packed, scale, zero_point, *more = (file.get_tensor(tensor) for tensor in _tensor_names(name, entry))
    rows, count = scale.numel(), math.prod(shape)
    if scale.dtype is not torch.float32 or zero_point.dtype is not torch.uint8 or zero_point.shape != (rows,):
        raise ArtifactError(f"the grid of {name!r} is damaged; quantize the checkpoint again")
    if rows == 0 or count % rows or min(shape, default=0) <= 0:
        raise ArtifactError(f"weight {name!r} of shape {list(shape)} has {rows} scales; quantize the checkpoint again")
    weight = QuantizedWeight(unpack(packed, bits, count).view(rows, -1), scale, zero_point, bits, shape)
    return _with_levels(name, weight, *more) if more else weight


def _with_levels(name: str, weight: QuantizedWeight, exponent: Tensor) -> PowerWeight:
    """Return a weight with power levels, none of which is outside their table."""
    if (
        exponent.dtype is not torch.uint8
        or exponent.shape != weight.scale.shape
        or bool((exponent < UNIFORM).any() or (exponent > MOST_SIXTEENTHS).any())
        or bool((weight.zero_point > (1 << weight.bits) - 1).any())
        or not bool((weight.scale.isfinite() & (weight.scale > 0)).all())
    ):
        raise ArtifactError(f"the levels of {name!r} are damaged; quantize the checkpoint again")
    return PowerWeight(**vars(weight), exponent=exponent)
