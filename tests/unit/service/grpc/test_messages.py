"""The messages: those of the .proto files, which are the published ones."""

from __future__ import annotations

from typing import Any

import pytest

from service.grpc.generate import TARGET, descriptor_module
from service.grpc.messages import HEALTH, HEALTH_METHODS, METHODS, SERVICE

published = pytest.importorskip(
    "tritonclient.grpc.service_pb2", reason="tritonclient[grpc], of the extra 'test', is not installed"
)


def test_the_descriptor_is_that_of_the_source() -> None:
    assert descriptor_module() == TARGET.read_text(), "run `python service/grpc/generate.py`"


def kind(field: Any) -> tuple[Any, ...]:
    nested = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return field.name, field.type, field.is_repeated, nested and nested.full_name, oneof and oneof.name


def compare(ours: Any, theirs: Any, seen: set[str]) -> None:
    """Check that each field of a message has the number, type and name of the published one."""
    assert ours.full_name == theirs.full_name
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    known = {field.number: field for field in theirs.fields}
    for field in ours.fields:
        assert kind(field) == kind(known[field.number]), f"{ours.full_name}.{field.name}"
        if field.message_type is not None:
            compare(field.message_type, known[field.number].message_type, seen)
        elif field.enum_type is not None:
            values = {value.name: value.number for value in known[field.number].enum_type.values}
            assert {value.name: value.number for value in field.enum_type.values}.items() <= values.items()


def test_health_is_the_published_one() -> None:
    theirs = pytest.importorskip("grpc_health.v1.health_pb2", reason="grpcio-health-checking is not installed")
    known, seen = theirs.DESCRIPTOR.services_by_name["Health"].methods_by_name, set[str]()
    assert theirs.DESCRIPTOR.services_by_name["Health"].full_name == HEALTH
    for name, (request, response) in HEALTH_METHODS.items():
        compare(request.DESCRIPTOR, known[name].input_type, seen)
        compare(response.DESCRIPTOR, known[name].output_type, seen)
    assert len(seen) == 2


def test_methods_and_messages_are_the_published_ones() -> None:
    service = published.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]]
    assert service.full_name == SERVICE
    known, seen = {method.name: method for method in service.methods}, set[str]()
    for name, (request, response) in METHODS.items():
        compare(request.DESCRIPTOR, known[name].input_type, seen)
        compare(response.DESCRIPTOR, known[name].output_type, seen)
    assert len(seen) > 40
    assert {field.name for field in METHODS["ModelInfer"][0].DESCRIPTOR.fields} == {
        field.name for field in published.ModelInferRequest.DESCRIPTOR.fields
    }
