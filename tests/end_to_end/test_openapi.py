"""The whole HTTP surface of a running daemon, asked with what schemathesis makes of its OpenAPI document."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from edged.artifacts.store import ModelStore
from service.http.openapi import document
from tests.support.artifacts import write_untrained, write_untrained_detector
from tests.support.daemon import TIMEOUT_S, Daemon
from tests.support.tasks import Task

TOKEN = "a word that only the administrator knows"  # noqa: S105 - of this daemon alone
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
DOCUMENT = document()
METHODS = {"get", "post"}
OPERATIONS = [(method, path) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS]
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
ANYWAY = list(HealthCheck)  # few values of some parameters fit
# The names of what the daemon has; requests that do not fit the document have others.
KNOWN = {"model": ["digits", "shapes", "empty", "trained"], "version": ["1", "2"], "update": [1, 2]}
ALL_FITS = ("/static/{name}",)  # no request does not fit the document


def strict(value: Any) -> Any:
    """Forbid keys that the document does not name, or one that is added would be forgotten in it."""
    if isinstance(value, list):
        return [strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    closed = {key: strict(each) for key, each in value.items()}
    if isinstance(value.get("properties"), dict) and isinstance(value.get("type"), (str, list)):
        closed.setdefault("additionalProperties", False)
    return closed


def described() -> dict[str, Any]:
    """The document as the answers are compared with it."""
    found = copy.deepcopy(DOCUMENT)
    for path in found["paths"].values():
        for operation in path.values():
            if "responses" in operation:
                operation["responses"] = strict(operation["responses"])
    schemas = found["components"]["schemas"]
    found["components"]["schemas"] = {
        name: schema if name.endswith("Request") else strict(schema) for name, schema in schemas.items()
    }
    for name, values in KNOWN.items():
        found["components"]["parameters"][name]["schema"] = {"enum": values}
    return found


@pytest.fixture(scope="module")
def schema() -> Any:
    return schemathesis.openapi.from_dict(described())


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a classifier of two generations, a detector, a model without any, and updates of a fourth one."""
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "token").write_text(TOKEN)
    model = {"calibration": {"dir": str(task.calibration)}, "quantization": {"bits": 4, "recipe": "fast"}}
    models = [{**model, "name": name} for name in KNOWN["model"]]
    models[-1]["input"] = {"size": 8, "resize": 8}
    serve = {"token_file": str(folder / "token"), "max_body_bytes": 1 << 20}
    daemon = Daemon(folder, task.calibration, models=models, serve=serve)
    store = ModelStore(daemon.state / "models")
    for name, write in (
        ("digits", write_untrained),
        ("digits", partial(write_untrained, seed=2)),
        ("shapes", write_untrained_detector),
    ):
        write(daemon.state / name)
        store.switch(name, store.publish(name, daemon.state / name))
    try:
        daemon.start()
        (folder / "bad.pt").write_text("no checkpoint")
        daemon.drop(folder / "bad.pt", model="trained")
        updates = [daemon.update_of("bad.pt"), daemon.put_live(task.first, model="trained")]
        assert [update["id"] for update in updates] == KNOWN["update"]
        yield daemon
        assert "a request failed" not in daemon.log.read_text()
    finally:
        daemon.close()


def ask(daemon: Daemon, schema: Any, method: str, path: str, examples: int) -> None:
    """Send requests that fit the document, and others that do not, and compare the answers with it."""
    address, operation = daemon.status()["address"], schema[path][method]
    for mode in (GenerationMode.POSITIVE, *([] if path in ALL_FITS else [GenerationMode.NEGATIVE])):

        @settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=ANYWAY)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            response = case.call_and_validate(base_url=address, headers=ADMIN, checks=CHECKS, timeout=TIMEOUT_S)
            assert response.status_code not in (500, 501, 502), response.text

        try:
            check()
        except Unsatisfiable:  # whatever is sent there fits
            assert mode is GenerationMode.NEGATIVE


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_answer_is_as_documented(daemon: Daemon, schema: Any, method: str, path: str) -> None:
    ask(daemon, schema, method, path, 5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_of_many_answers_is_as_documented(daemon: Daemon, schema: Any, method: str, path: str) -> None:
    ask(daemon, schema, method, path, 100)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_operation_does_what_it_is_there_for(
    daemon: Daemon, schema: Any, task: Task, method: str, path: str
) -> None:
    names = {"model": "digits" if path.endswith("rollback") else "trained", "version": "1", "id": 2, "name": "morph.js"}
    parts: dict[str, Any] = {"path_parameters": {name: value for name, value in names.items() if f"{{{name}}}" in path}}
    if path.endswith("/retry"):
        parts["path_parameters"] = {"id": 1}  # the rejected one
    if path.endswith("/infer"):
        parts |= {"body": request_of(task), "media_type": "application/json"}
    if path.endswith("/drop"):
        parts |= {
            "query": {"name": "more.pt"},
            "body": task.first.read_bytes(),
            "media_type": "application/octet-stream",
        }
    case = schema[path][method].Case(**parts)
    response = case.call_and_validate(
        base_url=daemon.status()["address"], headers=ADMIN, checks=CHECKS, timeout=TIMEOUT_S
    )
    # Nothing waits that could be cancelled.
    expected = "409" if path.endswith("/cancel") else min(DOCUMENT["paths"][path][method]["responses"])
    assert str(response.status_code) == expected, response.text


def photo(task: Task) -> bytes:
    file = io.BytesIO()
    Image.fromarray(task.digits.images[0].transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def request_of(task: Task, **parameters: Any) -> dict[str, Any]:
    """An inference request with a digit."""
    data = [base64.b64encode(photo(task)).decode()]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]
    return {"id": "7", "inputs": inputs, "parameters": parameters}


@pytest.mark.parametrize("model", ["trained", "shapes"])
@pytest.mark.parametrize("asked", ["json", "binary", "all outputs", "file", "form", "picture"])
def test_answers_of_models_are_as_documented(daemon: Daemon, schema: Any, task: Task, model: str, asked: str) -> None:
    address, given = daemon.status()["address"], {"model": model}
    body: Any = request_of(task, **({"binary_data_output": True} if asked == "binary" else {}))
    media_type, kind, status, headers = "application/json", "application/json", 200, {}
    if asked == "binary":
        kind = "application/octet-stream"
    elif asked == "all outputs":
        described = daemon.get(f"/v2/models/{model}").json()["outputs"]
        body["outputs"] = [{"name": output["name"]} for output in described]
    elif asked == "file":
        body, media_type = photo(task), "image/png"
    elif asked == "form":
        body, media_type = {"image": [photo(task)]}, "multipart/form-data"
    elif asked == "picture":
        headers = {"Accept": "image/png"}
        status, kind = (200, "image/png") if model == "shapes" else (406, "application/json")
    case = schema["/v2/models/{model}/infer"]["post"].Case(path_parameters=given, body=body, media_type=media_type)
    response = case.call_and_validate(base_url=address, headers=ADMIN | headers, checks=CHECKS, timeout=TIMEOUT_S)
    assert (response.status_code, response.headers["content-type"]) == (status, [kind]), response.text
    case = schema["/v2/models/{model}/stats"]["get"].Case(path_parameters=given)
    response = case.call_and_validate(base_url=address, headers=ADMIN, checks=CHECKS, timeout=TIMEOUT_S)
    assert response.json()["model_stats"][0]["inference_count"] > 0


def test_other_methods_are_refused_with_those_that_are_not(daemon: Daemon) -> None:
    with daemon.tcp() as client:
        for path, item in DOCUMENT["paths"].items():
            target = filled(path)
            served = {method.upper() for method in item if method in METHODS}
            for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - served:
                answer = client.request(method, target, headers=ADMIN)
                assert answer.status_code == 405, (method, target)
                assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == served
                assert "is not served" in answer.json()["error"]


def test_a_token_is_needed_where_the_document_says_so(daemon: Daemon) -> None:
    with daemon.tcp() as client:
        for method, path in OPERATIONS:
            needs = DOCUMENT["paths"][path][method].get("security") == [{"adminToken": []}]
            for headers in ({}, {"Authorization": "Bearer other"}):
                if needs:  # and nothing is done
                    answer = client.request(method, filled(path), headers=headers)
                    assert (answer.status_code, answer.json()["code"]) == (403, "permission"), path
                elif method == "get":
                    assert client.get(filled(path), headers=headers).status_code == 200, path


def filled(path: str) -> str:
    """Return a path with the names of what there is."""
    given = {"model": "shapes", "version": "1", "id": 2, "name": "status.js"}
    return path.format(**given)
