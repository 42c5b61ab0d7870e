"""The image of benchmarks.serving's overhead section in three forms: a prepared tensor, its pixels, and a JPEG file."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from benchmarks.serving.load import Call

SIDE = 224  # pixels
PHOTO_SIZE = (500, 375)  # pixels; the usual size of a photo in ImageNet
JPEG_BYTES = 50_000


@dataclass(frozen=True)
class Payload:
    """An image as a client sends it.

    Attributes:
        title: Name on the page.
        input: Name of the input, for edged and Triton alike.
        datatype: Datatype in the Open Inference Protocol.
        values: The tensor: float32 or uint8 [1, 3, side, side], or objects [1], the bytes of a file.
    """

    title: str
    input: str
    datatype: str
    values: np.ndarray

    def call(self, model: str) -> Call:
        """Return the request to a server of the protocol: a file is the whole body, a tensor follows its JSON."""
        if self.datatype == "BYTES":
            headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
            return Call(f"/v2/models/{model}/infer", self.values[0], headers)
        return tensor_call(model, self.input, self.datatype, self.values)


@lru_cache(maxsize=1)
def payloads() -> dict[str, Payload]:
    """Return the payloads by name."""
    pixels = photo(SIDE, SIDE).transpose(2, 0, 1)[None]
    file = np.empty(1, object)
    file[0] = jpeg(JPEG_BYTES)
    size = f"{PHOTO_SIZE[0]}x{PHOTO_SIZE[1]}"
    return {
        "fp32": Payload(f"1x3x{SIDE}x{SIDE} FP32", "input", "FP32", (pixels / 255 - 0.5).astype(np.float32)),
        "uint8": Payload(f"1x3x{SIDE}x{SIDE} UINT8", "pixels", "UINT8", np.ascontiguousarray(pixels)),
        "jpeg": Payload(f"JPEG of {len(file[0]) / 1000:.0f} kB, {size}", "image", "BYTES", file),
    }


def tensor_call(model: str, name: str, datatype: str, values: np.ndarray) -> Call:
    """Return a request with one tensor as bytes that asks for a binary response."""
    parameters = {"binary_data_size": values.nbytes}
    tensor = {"name": name, "datatype": datatype, "shape": values.shape, "parameters": parameters}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return Call(f"/v2/models/{model}/infer", text + values.tobytes(), headers)


def photo(width: int, height: int) -> np.ndarray:
    """Return pixels uint8 [height, width, 3] that compress like a photo: smooth shapes and some noise."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = random.normal(0, 8, (height, width, 1)).astype(np.float32)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def jpeg(wanted_bytes: int) -> bytes:
    """Return the JPEG file of a photo of PHOTO_SIZE whose length is nearest to the wanted one."""
    pixels = photo(*PHOTO_SIZE)
    return min((file_of(pixels, quality) for quality in range(50, 96)), key=lambda file: abs(len(file) - wanted_bytes))


def file_of(pixels: np.ndarray, quality: int) -> bytes:
    """Return pixels uint8 [height, width, 3] as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
