"""What the tensors of a network do not tell, and the readings of a file that follow from it.

Names and shapes are the same whether max-pooling follows a 3x3 stem or not, and whether a bottleneck's stride is in its
3x3 convolution (ResNet v1.5) or in the first 1x1 one (v1). The outputs are not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edged.models.architecture import Architecture
from edged.models.names import CIFAR
from edged.spec import Choice

_STRIDES = {
    "3x3": "the stride in the 3x3 convolution of a block (v1.5)",
    "1x1": "the stride in the first 1x1 convolution of a block (v1)",
}


@dataclass(frozen=True)
class Question:
    """Something that the tensors do not tell.

    Attributes:
        key: Key of the config that answers it.
        answers: What it may be, as values of the field of `Architecture` of that name; the usual one first.
    """

    key: str
    answers: tuple[bool | str, ...]


def open_questions(architecture: Architecture, choice: Choice | None = None) -> list[Question]:
    """Return what neither the tensors nor the user tell.

    Args:
        architecture: Architecture of the network.
        choice: What the user says; None for nothing.
    """
    choice = choice or Choice()
    questions = []
    if architecture.stem == "small" and choice.stem_pooling == "auto":
        questions.append(Question("stem_pooling", (False, True)))
    if architecture.has_bottlenecks and choice.stride_in == "auto":
        questions.append(Question("stride_in", ("3x3", "1x1")))
    return questions


def readings(architecture: Architecture, choice: Choice | None = None) -> list[Architecture]:
    """Return every architecture that the file may mean, the usual one first."""
    found = [architecture]
    for question in open_questions(architecture, choice):
        found = [_answered(reading, question.key, answer) for answer in question.answers for reading in found]
    return found


def reading_text(architecture: Architecture, choice: Choice | None = None) -> str:
    """Return the answers of a reading to the open questions, as text; "" if there is none."""
    return " and ".join(_answer(architecture, question.key) for question in open_questions(architecture, choice))


def assumptions(architecture: Architecture, choice: Choice | None = None, *, tried: bool = False) -> list[str]:
    """Return what edged assumes because neither the tensors nor the user tell.

    Args:
        architecture: Architecture of the network.
        choice: What the user says; None for nothing.
        tried: Whether labeled images have answered the open questions.
    """
    questions = [] if tried else open_questions(architecture, choice)
    assumed = [
        f"{_answer(architecture, question.key)}; the tensors do not tell, {question.key} sets it"
        for question in questions
    ]
    if architecture.name in CIFAR and architecture.shortcut == "pad":
        assumed.append("shortcuts without parameters (option A) pad half of the new channels on each side")
    return assumed


def _answered(architecture: Architecture, key: str, answer: bool | str) -> Architecture:
    if key == "stride_in":
        return dataclasses.replace(architecture, stride_in=str(answer))
    usual = answer == (architecture.stem == "imagenet")
    return dataclasses.replace(architecture, stem_pooling=None if usual else bool(answer))


def _answer(architecture: Architecture, key: str) -> str:
    if key == "stride_in":
        return _STRIDES[architecture.stride_in]
    return f"{'' if architecture.pools_stem else 'no '}max-pooling after the 3x3 stem"
