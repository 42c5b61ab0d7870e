import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.support.refusals import refused


def image(kind):
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, kind)
    return file.getvalue()


def array(save, *values):
    file = io.BytesIO()
    save(file, *values)
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("best.pt"))
    return file.getvalue()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


FILES = {
    "gzip": (gzip.compress(tar()), "gzip-compressed; unpack it"),
    "bzip2": (bz2.compress(b"x"), "bzip2-compressed; unpack it"),
    "xz": (lzma.compress(b"x"), "xz-compressed; unpack it"),
    "tar": (tar(), "tar archive; unpack it and give the checkpoint inside"),
    "onnx": (
        bytes.fromhex("080712077079746f726368") + b"\x1a\x05" + b"1.13." * 50,
        "ONNX file, .* that training saved",
    ),
    "onnx without a producer": (bytes.fromhex("08093a9b010a") + bytes(200), "ONNX file"),
    "keras h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file, as Keras writes them"),
    "keras 3": (zipped("metadata.json", "config.json", "model.weights.h5"), "Keras model"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow Lite model"),
    "tensorrt": (b"ftrt\0\0\0\0" + bytes(range(200)), "TensorRT engine, built for one GPU; give the .pt or .pth"),
    "executorch": (b"\x30\0\0\0ET12" + bytes(100), "ExecuTorch program"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
    "npy": (array(np.save, np.arange(3)), "NumPy array"),
    "npz": (array(np.savez, np.arange(3)), "NumPy archive"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "html": (b"<!DOCTYPE html><html><head><title>Sign in</title>", "web page.*download the file itself"),
    "openvino": (b'<?xml version="1.0"?><net name="m" version="11">', "OpenVINO model"),
    "index": (json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(), "index of a model in several"),
    "png": (image("PNG"), "PNG image; put images into the calibration folder"),
    "jpeg": (image("JPEG"), "JPEG image"),
    "zeros": (bytes(5000), "holds zeros only.*copy it again"),
    "text": ("größer, kleiner\n".encode() * 3, "it is a text file"),
    "protocol 0": (pickle.dumps({"a": [1, 2]}, 0), "pickle protocol 0 or 1"),
    "protocol 1": (pickle.dumps({"a": [1, 2]}, 1), "pickle protocol 0 or 1"),
    "zip of a checkpoint": (zipped("run/best.pt", "run/args.yaml"), "zip of other files; unpack it.*'run/best.pt'"),
    "torch.package": (zipped("m/.data/version", "m/.data/extern_modules"), "torch.package archive"),
    "torch.export": (zipped("m/archive_format", "m/models/model.json", "m/.data/version"), "exported program"),
    "TorchScript of a YOLOv5": (
        zipped("b/constants.pkl", "b/code/__torch__/models/yolo.py", "b/data.pkl"),
        "TorchScript archive.*give the .pt that its training saved",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_foreign_file_is_named_with_what_to_do(kind, tmp_path):
    content, reason = FILES[kind]
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    assert re.search(reason, refused(path))


def test_genuine_torchscript_is_refused_with_advice(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; its files are not
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), str(tmp_path / "m.pt"))
    assert "TorchScript archive, whose network is code; save model.state_dict() instead" in refused(tmp_path / "m.pt")
