"""Saturation of products of 8 bits: which codes can cause it, and a probe for it.

x86 processors without VNNI multiply 8-bit codes with an instruction (VPMADDUBSW) that adds two products in 16 bits and
clips the sum. Products of activations up to 255 fit if the codes of two weights add up to no more than 128. Processors
with VNNI add in 32 bits, and so do those of Arm.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edged.spec import AUTO

if TYPE_CHECKING:
    from edged.execution.executors import Executor, Floats
    from edged.quant.grid import QuantizedWeight

MOST = 128  # of the sum of two codes: 255 * 128 < 2**15 <= 255 * 129
_EXACT_CODE, _STEP = 200, 64 * 255 * 127 / 200  # of the probe's outputs


def codes_may_saturate(quantized: Mapping[str, QuantizedWeight]) -> bool:
    """Return whether two codes of a row, less its zero point, add up to more than fits.

    Args:
        quantized: Quantized weights by name.
    """
    return any(_row_may_saturate(weight) for weight in quantized.values() if weight.is_uniform)


def _row_may_saturate(weight: QuantizedWeight) -> bool:
    whole = weight.codes.int() - weight.zero_point.int()[:, None]
    pair = min(2, whole.shape[1])
    return any(int(signed.topk(pair, 1).values.sum(1).max()) > MOST for signed in (whole, -whole))


def settings_may_saturate(quantization: Mapping[str, Any]) -> bool:
    """Return whether weights quantized by these settings may saturate, for artifacts that do not say.

    Args:
        quantization: Settings, as `QuantSpec.to_dict()` returns them.
    """
    given = [quantization.get(key) or 0 for key in ("bits", "first_bits", "last_bits")]
    bits = max(8 if bits == AUTO else bits for bits in given)
    return bits > (7 if quantization.get("scheme") == "symmetric" else 6)


def engine_saturates(load: Callable[[bytes], Executor]) -> bool:
    """Return whether an engine saturates on this processor, by the sums of a tiny model that are known.

    Args:
        load: Loads an ONNX model into the engine.
    """
    return not is_exact(load(probe_model()).run(np.full((1, 64, 4, 4), 255, np.float32)))


def probe_model() -> bytes:
    """Return the probe: an ONNX model that multiplies codes of 255 by weights of 127.

    It is stored because a generation does not import onnx, which takes 12 MB.
    """
    return zlib.decompress(base64.b85decode("".join(_PROBE)))


def is_exact(outputs: Floats) -> bool:
    """Return whether the probe's outputs are those of exact sums."""
    return bool((abs(outputs / _STEP - _EXACT_CODE) < 0.5).all())


_PROBE = (
    "c-rlhyH12a6oxr4>`o3@9Vf<EdBNCB%$6255;PVQ6Ju)!?8J~5SXnNzjr#~bf-mHA*!U0*$`%WyrTod?eRIy7=A)F`YWApR7oQHEq8%s",
    "mB1bDt6q2RNQVxN;bzcNY9xv5xoTwnf6NF#`30-!ro;RU$gbK&ibP)wl3P;uS7cKj!aF7Hq@nYY22NSmuLWGh-?UJiBDfOqI#&O*aYBx",
    "r`Pn{t|U2K#Vxjv`AlH2nv4V9QM@S8&<F^tuvaG2@;yp&*wH%b}xC{SRQ50zZe*C9iO{M(2-%Cs=nQj=aIjlWbJ=z*5s%26_-6S32*Yn",
    ">*^$Jg=A!(r=azK6RMI75?yuBS_yhDX?HuS2jk;S)62<Qw0sZ*%",
)
