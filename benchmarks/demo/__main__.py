"""Show the main job from start to end, on a daemon of its own in a temporary folder. `make demo` runs it.

The demo trains a ResNet-18 on handwritten digits and drops it; the quantized model goes live and answers over HTTP; a
broken file is rejected; a second checkpoint replaces the first. If EDGED_DATA points to real checkpoints and images,
the demo drops them too, among them a YOLOv5, whose boxes it draws into a picture.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.demo import digits
from benchmarks.demo.boxes import draw_sheet
from benchmarks.demo.daemon import EDGED, ask, daemon, submit, table
from benchmarks.options import parser_of
from service.journal.states import UPDATE_STAGES
from service.reporting.facts import figures

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
STAGES = UPDATE_STAGES[: UPDATE_STAGES.index("swap") + 1]  # until it is live
# Checkpoint, folder of calibration images, and further settings of the model.
REAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "imagenette": ("resnet18-imagenette.pth", "imagenette/calib", {"input": {"size": 128, "resize": 144}}),
    "cifar20": ("resnet20-12fca82f.th", "cifar10/calib", {"input": {"size": 32, "resize": 32}}),
    "cifar56": ("resnet56-4bfd9763.th", "cifar10/calib", {"input": {"size": 32, "resize": 32}}),
    "coco": ("yolov5n.pt", "coco/calib", {"quantization": {"bits": 6}}),
}
DETECTOR, PICTURES = "coco", "coco/val/images"


def main() -> None:
    """Run the demo; exit with code 1 and a reason if anything fails."""
    parser = parser_of(__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the daemon running and keep its folder")
    parser.add_argument("--picture", type=Path, default=Path("edged-demo.jpg"), help="file for YOLOv5's boxes")
    options = parser.parse_args()
    keep = options.keep
    folder = Path(tempfile.mkdtemp(prefix="edged-demo-"))
    data = digits.load()
    digits.write_folders(data, digits.TRAIN, folder / "digits")
    config = write_config(folder)
    with daemon(config, keep) as address:
        print(f"daemon   {address}, state in {folder}")
        first = train(data, folder / "digits-1.pth", epochs=2, seed=0)
        show_update(config, address, first, data)
        show_rejection(config, folder)
        second = train(data, folder / "digits-2.pth", epochs=3, seed=1)
        show_update(config, address, second, data)
        for name in real_models():
            show_real(config, name)
        if DETECTOR in real_models():
            asked, boxes = draw_sheet(address, DETECTOR, Path(os.environ["EDGED_DATA"], PICTURES), options.picture)
            print(f"\npicture  {options.picture}: {boxes} boxes in {asked} images; shows those with the most boxes")
        print(f"\nmetrics  {address}/metrics")
        if keep:
            print(f"still running; see: {EDGED} status --config {config}")


def write_config(folder: Path) -> Path:
    """Write configs/demo.yaml into the demo's folder, with the real models if there are any, and return its path."""
    config = yaml.safe_load(CONFIG.read_text())
    root = os.environ.get("EDGED_DATA")
    for name in real_models():
        _, images, settings = REAL[name]
        config["models"].append({"name": name, "calibration": {"dir": f"{root}/{images}"}, **settings})
    path = folder / "edged.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def real_models() -> list[str]:
    """Return the models of REAL whose checkpoints exist."""
    root = os.environ.get("EDGED_DATA")
    return [] if not root else [name for name, (file, *_) in REAL.items() if Path(root, "weights", file).is_file()]


def train(data: digits.Digits, path: Path, epochs: int, seed: int) -> Path:
    """Train on the digits and save a state dict, as a training script would."""
    start = time.monotonic()
    model = digits.train_resnet18(data, epochs, seed)
    torch.save({"state_dict": model.state_dict(), "epoch": epochs}, path)
    print(f"\ntrained  {path.name} on {len(data.labels[digits.TRAIN])} digits in {time.monotonic() - start:.0f} s")
    return path


def show_update(config: Path, address: str, checkpoint: Path, data: digits.Digits) -> None:
    """Drop a checkpoint, wait until it is live, classify the test images with it, and print the results."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    update = submit(config, "digits", checkpoint)
    logits, generation = infer(address, "digits", data.images[digits.TEST])
    if generation != str(update["generation"]):
        sys.exit(f"generation {update['generation']} is committed, but generation {generation} answered")
    labels = data.labels[digits.TEST]
    full = full_precision(state, data)
    seconds = " ".join(f"{stage} {update['stages'].get(stage, 0):.1f}" for stage in STAGES)
    report = update["report"]
    table(
        f"{checkpoint.name} is live as generation {generation}",
        {
            "FP32 top-1": f"{100 * (full.argmax(1) == labels).mean():.2f} %  of {len(labels)} test images",
            "quantized top-1": f"{100 * (logits.argmax(1) == labels).mean():.2f} %  at {report['bits']} bits",
            "agreement": f"{100 * (logits.argmax(1) == full.argmax(1)).mean():.2f} %",
            "checkpoint": f"{report['checkpoint_bytes'] / 1e6:.2f} MB",
            "artifact": f"{report['artifact_bytes'] / 1e6:.2f} MB",
            "drop to live": f"{sum(update['stages'].values()):.1f} s: {seconds}",
            "worker's peak": f"{report['peak_memory_bytes'] / 1e6:.0f} MB",
        },
    )


def show_rejection(config: Path, folder: Path) -> None:
    """Drop a file that is not a checkpoint; the live model must stay."""
    broken = folder / "broken.pth"
    broken.write_bytes(b"PK\x03\x04" + os.urandom(4096))
    update = submit(config, "digits", broken, expected="REJECTED")
    table("broken.pth", {"result": "rejected", "reason": update["reason"]})


def show_real(config: Path, name: str) -> None:
    """Drop a real checkpoint and print the results."""
    file = Path(os.environ["EDGED_DATA"], "weights", REAL[name][0])
    update = submit(config, name, file)
    report = update["report"]
    table(
        f"{file.name} is live as generation {update['generation']} of {name}",
        {
            **dict(figures(report)),
            "size": f"{report['checkpoint_bytes'] / 1e6:.2f} MB -> {report['artifact_bytes'] / 1e6:.2f} MB",
            "drop to live": f"{sum(update['stages'].values()):.1f} s",
            "worker's peak": f"{report['peak_memory_bytes'] / 1e6:.0f} MB",
        },
    )


def infer(address: str, model: str, images: np.ndarray) -> tuple[np.ndarray, str]:
    """Return logits [n, classes] of images uint8 [n, side, side], sent as PNG, and the generation that answered."""
    logits, generations = [], set()
    for start in range(0, len(images), 60):
        encoded = [base64.b64encode(png(image)).decode() for image in images[start : start + 60]]
        answer = ask(address, model, encoded)
        output = answer["outputs"][0]
        logits.append(np.array(output["data"], np.float32).reshape(output["shape"]))
        generations.add(answer["model_version"])
    if len(generations) != 1:
        sys.exit(f"one generation should have answered, not {generations}")
    return np.concatenate(logits), generations.pop()


def png(image: np.ndarray) -> bytes:
    """Return an image encoded as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def full_precision(state: dict[str, torch.Tensor], data: digits.Digits) -> np.ndarray:
    """Return the logits [n, classes] of the dropped model itself on the test images."""
    from edged.models.registry import load_model, recognize

    with torch.inference_mode():
        return load_model(state, recognize(state))(digits.tensors(data, digits.TEST)).numpy()


if __name__ == "__main__":
    main()
