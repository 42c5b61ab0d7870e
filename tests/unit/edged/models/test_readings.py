import pytest

from edged.models.architecture import Architecture
from edged.models.readings import assumptions, open_questions, reading_text, readings
from edged.spec import Choice

SMALL = Architecture("resnet18", 10, "small")
BOTTLENECKS = Architecture("resnet50", 10)
BOTH = Architecture("resnet50", 10, "small")


@pytest.mark.parametrize(
    ("architecture", "choice", "keys"),
    [
        (Architecture("resnet18", 10), Choice(), []),
        (Architecture("cifar_resnet20", 10, "cifar", shortcut="pad"), Choice(), []),
        (SMALL, Choice(), ["stem_pooling"]),
        (SMALL, Choice(stem_pooling="false"), []),
        (BOTTLENECKS, Choice(), ["stride_in"]),
        (BOTTLENECKS, Choice(stride_in="1x1"), []),
        (BOTH, Choice(), ["stem_pooling", "stride_in"]),
        (BOTH, Choice(stride_in="3x3"), ["stem_pooling"]),
    ],
)
def test_a_question_is_open_until_the_user_answers_it(architecture, choice, keys):
    assert [question.key for question in open_questions(architecture, choice)] == keys
    found = readings(architecture, choice)
    assert found[0] == architecture
    assert len({*found}) == 2 ** len(keys)
    assert len({reading_text(reading, choice) for reading in found}) == len(found)
    texts = assumptions(architecture, choice)
    assert all(any(f"{key} sets it" in text for text in texts) for key in keys)
    assert not any("sets it" in text for text in assumptions(architecture, choice, tried=True))


def test_the_usual_reading_is_described():
    assert reading_text(BOTH) == (
        "no max-pooling after the 3x3 stem and the stride in the 3x3 convolution of a block (v1.5)"
    )
    assert reading_text(readings(BOTH)[-1]) == (
        "max-pooling after the 3x3 stem and the stride in the first 1x1 convolution of a block (v1)"
    )
