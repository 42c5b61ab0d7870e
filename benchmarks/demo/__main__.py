"""Show the main job from start to end, on a daemon of its own in a temporary folder. `make demo` runs it.

The demo trains a ResNet-20 on handwritten digits and drops it; the quantized model goes live and answers over HTTP; a
broken file is rejected; a second checkpoint replaces the first. If EDGED_DATA points to real checkpoints and images,
the demo drops them too, among them a YOLOv5, whose boxes it draws into a picture.

However the demo ends, its daemon ends with it. Only with --keep, at the end, it starts the daemon once more as a
process of its own, whose id is in edged-demo.pid.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import os
import select
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.demo import digits, kept
from benchmarks.demo.boxes import draw_sheet
from benchmarks.demo.daemon import EDGED, ask, daemon, start, submit, table, wait_until_ready
from benchmarks.demo.steps import Steps
from benchmarks.options import parser_of
from service.journal.states import UPDATE_STAGES
from service.reporting.facts import figures

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
DURATION = "about half a minute on two cores"
REAL_DURATION = ", and about two minutes for the real checkpoints of EDGED_DATA"
WAIT_S = 60  # on a terminal
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
    parser.add_argument("--keep", action="store_true", help="leave a daemon running at the end")
    parser.add_argument("--picture", type=Path, default=Path("edged-demo.jpg"), help="file for YOLOv5's boxes")
    options = parser.parse_args()
    if options.keep and kept.find(kept.PID_FILE):
        sys.exit("the daemon of an earlier demo is running; stop it first: make demo-stop")
    interruption = Interruption()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interruption.arrive)
    try:
        run(options, interruption)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print("\ninterrupted: the daemon is stopped and its folder removed", file=sys.stderr)
        sys.exit(130)


class Interruption:
    """Signals that end this process like Ctrl-C, so that the daemon is stopped and its folder removed.

    Python drops what a signal raises in some callbacks, for example in those of imports. So an interruption is
    remembered until the next step.
    """

    def __init__(self) -> None:
        self._arrived = False

    def arrive(self, *_: object) -> None:
        """Handle a signal."""
        self._arrived = True
        self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived."""
        if self._arrived:
            raise KeyboardInterrupt


def run(options: argparse.Namespace, interruption: Interruption) -> None:
    """Run all steps, on a daemon that ends with them."""
    folder = Path(tempfile.mkdtemp(prefix=kept.PREFIX))
    real = real_models()
    print(f"edged demo: {DURATION}{REAL_DURATION if real else ''}. Ctrl-C stops it. Its folder is {folder}")
    torch.set_num_threads(1)  # more of them slow such small layers down, above all on a busy machine
    data = digits.load()
    digits.write_folders(data, digits.TRAIN, folder / "digits")
    config = write_config(folder)
    steps = Steps(6 + len(real), sys.stdout, interruption.check)
    with contextlib.ExitStack() as stack:
        with steps.step("start the daemon"):
            address = stack.enter_context(daemon(config, remove=not options.keep))
        demo = Demo(config, address, steps)
        demo.show_update(data, folder / "digits-1.pth", epochs=4, seed=0)
        demo.show_rejection(folder)
        demo.show_update(data, folder / "digits-2.pth", epochs=8, seed=1)
        for name in real:
            demo.show_real(name)
        if DETECTOR in real:
            asked, boxes = draw_sheet(address, DETECTOR, Path(os.environ["EDGED_DATA"], PICTURES), options.picture)
            print(f"{options.picture} shows those of {asked} images with the most boxes, of {boxes} in all")
        if not options.keep:
            show_next(address, config)
    if options.keep:
        print("it is started again, to run on after this program")
        process = start(config)
        kept.remember(kept.PID_FILE, process.pid, config)
        show_next(wait_until_ready(config, process), config, "make demo-stop")


def show_next(address: str, config: Path, stop: str = "") -> None:
    """Print how to look at the daemon, ask it and stop it; on a terminal, wait for a while if it is about to stop.

    Args:
        address: Address of the daemon.
        config: Its config file.
        stop: Command that stops it; without one it stops when this returns.
    """
    image = next((config.parent / "digits" / "7").iterdir())
    waits = not stop and sys.stdin.isatty() and sys.stdout.isatty()
    ending = f"press Enter; it stops by itself in {WAIT_S} s"
    if not stop and not waits:
        print("\nThe daemon stops now. `make demo KEEP=1` leaves it running: a status page, and a curl line to ask it.")
        return
    table(
        "\nThe daemon is running:",
        {
            "status page": f"{address}/",
            "metrics": f"{address}/metrics",
            "ask it": f"curl -s {address}/v2/models/digits/infer -F image=@{image}",
            "its commands": f"{EDGED} status --config {config}",
            "stop it": stop or ending,
        },
    )
    if waits:
        select.select([sys.stdin], [], [], WAIT_S)


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


class Demo:
    """What is shown on one daemon.

    Args:
        config: Its config file.
        address: Its address.
        steps: Where the steps are shown.
    """

    def __init__(self, config: Path, address: str, steps: Steps) -> None:
        self._config, self._address, self._steps = config, address, steps

    def show_update(self, data: digits.Digits, path: Path, epochs: int, seed: int) -> None:
        """Train a network, drop it, classify the test images with it once it is live, and print the results."""
        with self._steps.step(f"train {path.name}") as step:
            model = digits.train(data, epochs, seed, show=step.at)
        torch.save({"state_dict": model.state_dict(), "epoch": epochs}, path)
        with self._steps.step(f"drop {path.name}") as step:
            update = submit(self._config, "digits", path, show=step.update)
        logits, generation = infer(self._address, "digits", data.images[digits.TEST])
        if generation != str(update["generation"]):
            sys.exit(f"generation {update['generation']} is committed, but generation {generation} answered")
        labels = data.labels[digits.TEST]
        with torch.inference_mode():
            full = model(digits.tensors(data, digits.TEST)).numpy()
        report = update["report"]
        table(
            f"{path.name} is live as generation {generation}:",
            {
                "full precision": f"{100 * (full.argmax(1) == labels).mean():.2f} % of {len(labels)} test images right",
                "quantized": f"{100 * (logits.argmax(1) == labels).mean():.2f} %, at {report['bits']} bits",
                "agreement": f"{100 * (logits.argmax(1) == full.argmax(1)).mean():.2f} %",
                **common_results(update),
            },
        )

    def show_rejection(self, folder: Path) -> None:
        """Drop a file that is not a checkpoint; the live model must stay."""
        broken = folder / "broken.pth"
        broken.write_bytes(b"PK\x03\x04" + os.urandom(4096))
        with self._steps.step("drop broken.pth") as step:
            update = submit(self._config, "digits", broken, expected="REJECTED", show=step.update)
        table("broken.pth is rejected, and the live model stays:", {"reason": update["reason"]})

    def show_real(self, name: str) -> None:
        """Drop a real checkpoint and print the results."""
        file = Path(os.environ["EDGED_DATA"], "weights", REAL[name][0])
        with self._steps.step(f"drop {file.name}") as step:
            update = submit(self._config, name, file, show=step.update)
        table(
            f"{file.name} is live as generation {update['generation']} of {name}:",
            {**dict(figures(update["report"])), **common_results(update)},
        )


def common_results(update: dict[str, Any]) -> dict[str, str]:
    """Return what is shown of the update of any checkpoint."""
    report = update["report"]
    return {
        "size": f"{report['checkpoint_bytes'] / 1e6:.2f} MB -> {report['artifact_bytes'] / 1e6:.2f} MB",
        "drop to live": f"{sum(update['stages'].get(stage, 0) for stage in STAGES):.1f} s",
        "worker's peak": f"{report['peak_memory_bytes'] / 1e6:.0f} MB",
    }


def infer(address: str, model: str, images: np.ndarray) -> tuple[np.ndarray, str]:
    """Return logits [n, classes] of images uint8 [n, side, side], sent as PNG, and the generation that answered."""
    logits, generations = [], set()
    for first in range(0, len(images), 60):
        encoded = [base64.b64encode(png(image)).decode() for image in images[first : first + 60]]
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


if __name__ == "__main__":
    main()
