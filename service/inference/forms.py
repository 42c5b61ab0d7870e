"""Requests as a person sends them: image files, in a body of their own or in a form, and parameters in the address.

    curl HOST/v2/models/NAME/infer?top_k=3 -H 'Content-Type: image/jpeg' --data-binary @photo.jpg
    curl HOST/v2/models/NAME/infer -F image=@one.jpg -F image=@two.jpg -F confidence=0.5

Runs in the generation. A parameter in the address or in a field of a form is one of the protocol's `parameters`. There,
unknown ones are left alone, because clients send all sorts of them; here they are mistakes, and are named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from edged.calibration.formats import format_of
from edged.spec import InputSpec
from edged.spelling import names_to_choose
from service.inference.accept import Picture, picture_of
from service.inference.inputs import IMAGE_INPUT, max_batch, read_files
from service.inference.multipart import MAX_FIELDS, Part, read_parts
from service.inference.requests import BINARY_OUTPUTS, Request, parse_request
from service.ipc.messages import Body, Form, RequestError

OUTPUTS = "outputs"  # names, separated by commas
_MAX_TEXT = 1000  # bytes of a field that is no file


@dataclass(frozen=True)
class Known:
    """What requests of a model can ask for.

    Attributes:
        outputs: Names of the outputs.
        parameters: Type of each parameter, int or float.
        draws: Whether an answer can be drawn on the image.
    """

    outputs: Sequence[str]
    parameters: Mapping[str, type]
    draws: bool = False


def read_form(body: Body, form: Form, spec: InputSpec, known: Known, parsed: dict[str, Any] | None = None) -> Request:
    """Read a request that has more than a body as the protocol has it.

    Args:
        body: Its body: image files, a form, or a body of the protocol.
        form: What the HTTP request says next to it.
        spec: Input of the model.
        known: What it can ask for.
        parsed: See `parse_request`.

    Raises:
        RequestError: A part of it is not as documented; the message names it, its value and what to send.
    """
    picture = picture_of(form.accept, draws=known.draws)
    fields = parse_qsl(form.query, keep_blank_values=True, max_num_fields=None)
    files: list[memoryview] = []
    if form.content_type.lower().startswith("multipart/"):
        parts = read_parts(body.content, form.content_type, max_batch(spec) + MAX_FIELDS)
        files = [part.data for part in parts if part.name == IMAGE_INPUT]
        fields += [_field(part, known) for part in parts if part.name != IMAGE_INPUT]
        _check_files([part for part in parts if part.name == IMAGE_INPUT], max_batch(spec))
    elif form.content_type:
        files = [memoryview(body.content)]
    given = _values(fields, known)
    if files:
        images, letterboxes = read_files(files, spec)
        request = Request(images, letterboxes=letterboxes, files=tuple(files), is_form=True)
    else:
        request = parse_request(body, spec, known.outputs, parsed)
    return _with_picture(_with_values(request, given, known), picture)


def _field(part: Part, known: Known) -> tuple[str, str]:
    """Return the name and the text of a field that is no image."""
    if part.filename is not None:
        raise RequestError(f"field {part.name!r:.80} has a file; send images in the field {IMAGE_INPUT!r}")
    if len(part.data) > _MAX_TEXT:
        _check_name(part.name, known)
        raise RequestError(f"parameter {part.name!r} has {len(part.data)} bytes; send a number or names")
    return part.name, bytes(part.data).decode(errors="replace")


def _check_files(parts: Sequence[Part], most: int) -> None:
    if not parts:
        raise RequestError(
            f"the form has no field {IMAGE_INPUT!r}; send at least one file, as `curl -F image=@photo.jpg` does"
        )
    if len(parts) > most:
        raise RequestError(f"the form has {len(parts)} images; send at most {most} in a request")
    for part in parts:
        if part.filename is None and len(part.data) <= _MAX_TEXT and format_of(bytes(part.data[:16])) is None:
            text = bytes(part.data).decode(errors="replace")
            raise RequestError(
                f"field {IMAGE_INPUT!r} has the text {text!r:.80}, no file; curl needs an @: -F image=@photo.jpg"
            )


def _values(fields: Sequence[tuple[str, str]], known: Known) -> dict[str, Any]:
    """Convert the texts of parameters to their types."""
    given: dict[str, Any] = {}
    for name, text in fields:
        _check_name(name, known)
        if name in given:
            raise RequestError(f"parameter {name!r} is given twice; send it once")
        if name == OUTPUTS:
            given[name] = _output_names(text, known.outputs)
        elif name == BINARY_OUTPUTS:
            given[name] = _flag(name, text)
        else:
            given[name] = _number(name, text, known.parameters[name])
    return given


def _check_name(name: str, known: Known) -> None:
    names = [*known.parameters, OUTPUTS, BINARY_OUTPUTS]
    if name not in names:
        raise RequestError(f"parameter {name!r:.80} is unknown; {names_to_choose(name[:80], names, 'known:')}")


def _output_names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in known or names.count(name) > 1:
            raise RequestError(f"parameter {OUTPUTS} has value {text!r:.80}; choose from {', '.join(known)}, each once")
    return names


def _flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise RequestError(f"parameter {name} has value {text!r:.80}; choose true or false")
    return text == "true"


def _number(name: str, text: str, kind: type) -> int | float:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = None
    if type(value) is int or (kind is float and type(value) is float):
        number: int | float = value
        return number
    raise RequestError(
        f"parameter {name} has value {text!r:.80}; send a {'number' if kind is float else 'whole number'}"
    )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _with_values(request: Request, given: Mapping[str, Any], known: Known) -> Request:
    """Add parameters to those that the body of a request has."""
    values = dict(given)
    outputs, all_binary = values.pop(OUTPUTS, ()), values.pop(BINARY_OUTPUTS, False)
    for name in (*values, *([OUTPUTS] if outputs else ())):
        if name in request.parameters or (name == OUTPUTS and request.outputs):
            raise RequestError(f"parameter {name!r} is in the address and in the body; send it once")
    return replace(
        request,
        outputs=request.outputs or outputs,
        parameters={**request.parameters, **values},
        binary=request.binary | frozenset(known.outputs if all_binary else ()),
    )


def _with_picture(request: Request, picture: Picture | None) -> Request:
    if picture is None:
        return request
    if len(request.files) != 1:
        had = f"{len(request.files)} images" if request.files else "a tensor"
        problem = f"Accept asks for a picture, and the request has {had}; send one image file"
    elif request.outputs:
        problem = "Accept asks for a picture, which has no outputs to choose; leave outputs out"
    else:
        return replace(request, picture=picture.format)
    if picture.required:
        raise RequestError(problem)
    return request  # browsers list the images that they show in every request
