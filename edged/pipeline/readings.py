"""Choose between the readings of a checkpoint with labeled images: each is tried on some, the better one is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edged.calibration.dataset import ImageCache
from edged.calibration.folder import deal
from edged.device import CPU, exact_float32
from edged.errors import ArchitectureError
from edged.evaluation.chance import is_chance, is_lucky, tail
from edged.evaluation.classification import predict
from edged.evaluation.gates import chance_finding
from edged.models.loading import LoadedNetwork
from edged.models.readings import open_questions, reading_text
from edged.models.registry import load_model

ROUNDS = (64, 256, 1024)  # labeled images of the first try, and of the next ones while they do not decide
_BATCH_PIXELS = 8 * 224**2
_SURE = 0.001  # share of wrong decisions for another reading than the usual one that is accepted


@dataclass(frozen=True)
class Trial:
    """How often each reading was right.

    Attributes:
        correct: Correct images of each reading, the usual one first.
        images: Number of images.
        chance: Share of them that the most frequent class has.
        taken: Index of the reading that is taken.
        decided: Whether the images tell the readings apart.
    """

    correct: tuple[int, ...]
    images: int
    chance: float
    taken: int
    decided: bool


def choose_reading(network: LoadedNetwork, cache: ImageCache, device: torch.device = CPU) -> LoadedNetwork:
    """Return the network in the reading that is right most often on labeled images, with what was found.

    The usual reading stays where the images have no labels that fit, or do not tell the readings apart.

    Args:
        network: Network as it was loaded. Its numbers are not modified.
        cache: Decoded images.
        device: Device to compute on.

    Raises:
        ArchitectureError: The best reading is right as often as chance.
    """
    if len(network.readings) < 2 or not _labels_fit(network, cache):
        return network
    models = [load_model(network.model.state_dict(), reading) for reading in network.readings]
    trial = _tried([model.to(device) for model in models], cache)
    questions = open_questions(network.architecture, network.choice)
    if _is_chance(trial):
        keys = " and ".join(question.key for question in questions)
        best = max(trial.correct)
        raise ArchitectureError(
            f"the network is right on {best} of {trial.images} labeled images"
            f" ({100 * best / trial.images:.1f} %), chance is {100 * trial.chance:.1f} %, in the best of"
            f" {len(models)} readings; check that the class folders, sorted by name, are in the order of its classes,"
            f" and input (size, mean, std), or set {keys}"
        )
    tried = [
        {"reading": reading_text(reading, network.choice), "correct": correct, "taken": index == trial.taken}
        for index, (reading, correct) in enumerate(zip(network.readings, trial.correct, strict=True))
    ]
    found: dict[str, Any] = {"images": trial.images, "chance": trial.chance, "decided": trial.decided, "tried": tried}
    selection = dataclasses.replace(
        network.selection,
        readings=found,
        assumptions=network.selection.assumptions[len(questions) if trial.decided else 0 :],
    )
    return dataclasses.replace(
        network,
        model=models[trial.taken].to(CPU),
        architecture=network.readings[trial.taken],
        selection=selection,
    )


def find_chance(network: LoadedNetwork, cache: ImageCache, device: torch.device = CPU) -> str | None:
    """Try a classifier on labeled images, and return the finding if it is right as often as chance.

    Args:
        network: Network that `choose_reading` returned. Its numbers are not modified.
        cache: Decoded images.
        device: Device to compute on.

    Returns:
        The finding as text; None if it is better than chance, or there are no labels that fit.
    """
    if len(network.readings) > 1 or not _labels_fit(network, cache):  # several readings were tried already
        return None
    trial = _tried([network.model.to(device)], cache)
    network.model.to(CPU)
    if not _is_chance(trial):
        return None
    return chance_finding("full-precision", trial.correct[0], trial.images, trial.chance)


def _labels_fit(network: LoadedNetwork, cache: ImageCache) -> bool:
    classes = network.architecture.num_classes
    return network.architecture.plan is None and cache.labels is not None and len(cache.classes) == classes


def _tried(models: Sequence[torch.nn.Module], cache: ImageCache) -> Trial:
    """Try each model on more and more images until they decide, or there are no more."""
    labels = cache.labels_of(cache.calibration)
    assert labels is not None  # noqa: S101 - the caller has checked it
    order = torch.tensor(deal(labels.tolist()))  # every prefix is balanced over classes
    hits = torch.zeros(len(models), 0, dtype=torch.bool)
    batch = max(1, min(64, _BATCH_PIXELS // cache.input.size**2))
    for images in ROUNDS:
        part = order[hits.shape[1] : images]
        if not len(part):
            break
        with exact_float32(next(models[0].parameters()).device):
            new = [predict(model, cache, cache.calibration[part], batch).argmax(1) == labels[part] for model in models]
        hits = torch.cat([hits, torch.stack(new)], 1)
        seen = labels[order[: hits.shape[1]]]
        trial = decide(hits, int(seen.bincount().max()) / len(seen))
        # A single reading is decided in any case; images are added until it has shown skill, or that it has none.
        shows_skill = len(models) > 1 or not is_lucky(max(trial.correct), trial.images, trial.chance)
        if (trial.decided and shows_skill) or _is_chance(trial):
            break
    return trial


def decide(hits: Tensor, chance: float) -> Trial:
    """Return which reading the images speak for.

    Another reading than the first is taken only if it is right on significantly more images (sign test).

    Args:
        hits: Whether each reading is right on each image, bool [readings, images].
        chance: Share of right answers of a constant answer.
    """
    correct = hits.sum(1).tolist()
    best = max(range(len(correct)), key=lambda index: correct[index])
    better = [
        tail(int((hits[best] & ~hits[o]).sum()), int((hits[best] != hits[o]).sum()), 0.5) for o in range(len(hits))
    ]
    decided = all(luck <= _SURE for other, luck in enumerate(better) if other != best)
    return Trial(tuple(correct), hits.shape[1], chance, best if better[0] <= _SURE else 0, decided)


def _is_chance(trial: Trial) -> bool:
    return is_chance(max(trial.correct), trial.images, trial.chance)
