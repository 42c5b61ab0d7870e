"""Replies of a generation as responses of gRPC."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.grpc.messages import ModelInferResponse
from service.grpc.responses import error_of, response_of
from service.inference.requests import error_body
from service.inference.responses import OutputTensor, float_output, format_response
from service.ipc.messages import Body

FLOATS = hnp.arrays("<f4", hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(width=32))


def sent(body: Body, *, typed: bool) -> Any:
    return ModelInferResponse.FromString(response_of(body, typed=typed).SerializeToString())


@given(FLOATS, st.lists(st.text(max_size=5), min_size=1, max_size=3), st.none() | st.text(min_size=1, max_size=5))
def test_values_arrive_unchanged(values: np.ndarray, names: list[str], identity: str | None) -> None:
    outputs = [
        float_output("logits", values),
        OutputTensor("names", "BYTES", [len(names)], names),
        OutputTensor("counts", "INT64", [2], [3, -1]),
    ]
    body = format_response(outputs, "m", "7", identity, ("logits", "names", "counts"))
    raw, typed = sent(body, typed=False), sent(body, typed=True)
    for message in (raw, typed):
        assert (message.model_name, message.model_version, message.id) == ("m", "7", identity or "")
        assert [(o.name, o.datatype, list(o.shape)) for o in message.outputs] == [
            (o.name, o.datatype, list(o.shape)) for o in outputs
        ]
        assert not message.outputs[0].parameters
    assert list(raw.raw_output_contents) == [output.to_bytes() for output in outputs]
    assert not any(output.HasField("contents") for output in raw.outputs)
    assert not typed.raw_output_contents
    assert np.array(typed.outputs[0].contents.fp32_contents, "<f4").tobytes() == values.tobytes()
    assert [each.decode() for each in typed.outputs[1].contents.bytes_contents] == names
    assert list(typed.outputs[2].contents.int64_contents) == [3, -1]


def test_parameters_of_a_reply() -> None:
    text = (
        b'{"model_name": "m", "model_version": "1", "parameters": {"a": true, "b": 2, "c": 0.5, "d": "x"}, "outputs":'
        b' [{"name": "o", "datatype": "INT64", "shape": [0], "parameters": {"binary_data_size": 0, "e": 1}}]}'
    )
    message = sent(Body(text, len(text)), typed=False)
    found = {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in message.parameters.items()}
    assert found == {"a": True, "b": 2, "c": 0.5, "d": "x"}
    assert message.outputs[0].parameters["e"].int64_param == 1


def test_the_message_of_an_error() -> None:
    assert error_of(Body(error_body("shape has value 3"))) == "shape has value 3"
