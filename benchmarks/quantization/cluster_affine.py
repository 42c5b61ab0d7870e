"""Measure what the cluster-affine transformation of the logits (CAT, arXiv 2509.26277) gains on test images.

Each network is quantized once by recipe `balanced`; its logits on the test images are then counted as they are and
transformed. Requires EDGED_DATA. Usage:

    python -m benchmarks.cluster_affine [--networks resnet20,...] [--bits 4 3 2] [--out docs/cluster-affine.md]
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.quantization.each_network import Page, measure_each_network, network_parser
from benchmarks.quantization.networks import TEST_BATCH, Loaded
from edged.compress import compress
from edged.engine.cluster_affine import fit_cluster_affine
from edged.evaluation.classification import predict
from edged.evaluation.fidelity import squared_error
from edged.spec import recipe

HEADER = ("network", "bits", "full precision", "as it is", "transformed", "gain", "clusters", "held-out error", "kept")


def main() -> None:
    """Print the table, and write it if requested."""
    page = Page("cluster_affine", "Transformed logits", HEADER, _NOTES)
    measure_each_network(network_parser(__doc__).parse_args(), page, measured)


def measured(loaded: Loaded, bits: int) -> Iterator[tuple[str, ...]]:
    """Yield the row of one width: top-1 in percent and its gain with a standard error, and the held-out error."""
    done = compress(loaded.model, loaded.calibration, recipe("balanced", bits=bits))
    model, cache = done.model, done.cache
    full, quantized = (predict(net, cache, cache.calibration, TEST_BATCH) for net in (done.full, model))
    correction = fit_cluster_affine(quantized, full)
    errors = [squared_error(done.reference_logits, logits) for logits in (done.logits, correction(done.logits))]
    plain = predict(model, loaded.test, torch.arange(len(loaded.test)), TEST_BATCH)
    hits = [_hits(logits, loaded) for logits in (loaded.reference, plain, correction(plain))]
    gain = 100 * (hits[2] - hits[1])
    yield (
        *(f"{100 * float(each.mean()):.2f}" for each in hits),
        f"{float(gain.mean()):+.2f} ± {float(gain.std()) / len(gain) ** 0.5:.2f}",
        str(len(correction.centroids)),
        f"{100 * (errors[1] / errors[0] - 1):+.1f} %",
        "yes" if errors[1] < errors[0] else "no",
    )


def _hits(logits: Tensor, loaded: Loaded) -> Tensor:
    return (logits.argmax(1) == loaded.labels).double()


_NOTES = """\
Top-1 in percent on the test images, with the standard error of the difference. Bits are those of all layers, and
activations are in float. The held-out error is that of the logits against full precision, on a tenth of the calibration
images; edged keeps the transformation (`--cluster-affine`, `quantization.cluster_affine: true`) only where it is lower.
"""


if __name__ == "__main__":
    main()
