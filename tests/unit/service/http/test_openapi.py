"""The OpenAPI document: it is valid, and has just the routes that the daemon has."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from edged.version import __version__
from service.daemon.admin import Administration
from service.daemon.update_actions import UpdateActions
from service.http.inference_route import InferenceRoute
from service.http.openapi import document
from service.http.routes import create_app
from service.journal.states import State
from tests.support.daemon import NO_CERTIFICATES


def application() -> Any:
    """The application around a supervisor that only knows its actions, which some of the routes are made of."""
    nothing: Any = None
    records: Any = SimpleNamespace(updates=None)
    supervisor: Any = SimpleNamespace(
        administration=Administration(nothing, nothing, nothing),
        update_actions=UpdateActions(nothing, nothing, nothing, records, nothing),
        repository=nothing,
    )
    return create_app(supervisor, InferenceRoute(supervisor, nothing), nothing, nothing)


def operations(found: dict[str, Any]) -> set[tuple[str, str]]:
    methods = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
    return {(method.upper(), path) for path, item in found["paths"].items() for method in item.keys() & methods}


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(document()).validate()  # type: ignore[arg-type]  # its types want a mapping of its own


def test_it_has_the_routes_of_the_daemon_and_no_others() -> None:
    routes = [route for route in application().routes if isinstance(route, Route)]
    # Starlette answers HEAD wherever it answers GET.
    served = {(method, route.path_format) for route in routes for method in (route.methods or set()) - {"HEAD"}}
    assert served - operations(document()) == set(), "not documented"
    assert operations(document()) - served == set(), "documented, but not served"


def test_each_part_is_used() -> None:
    found = document()
    parts = {
        f"#/components/{kind}/{name}"
        for kind, named in found["components"].items()
        if kind != "securitySchemes"
        for name in named
    }
    assert parts == references(found)
    schemes = {name for item in found["paths"].values() for name in re.findall(r"'(\w+Token)'", str(item))}
    assert schemes == set(found["components"]["securitySchemes"])
    tags = {tag for item in found["paths"].values() for each in item.values() if "tags" in each for tag in each["tags"]}
    assert tags == {tag["name"] for tag in found["tags"]}


def test_what_changes_state_needs_the_administration_token() -> None:
    found = document()
    for method, path in operations(found):
        security = found["paths"][path][method.lower()].get("security", [])
        changes = method == "POST" and path.startswith("/edged/v1")
        assert (security == [{"adminToken": []}]) is (changes or path == "/edged/v1/logs"), path


def test_it_knows_what_the_code_knows() -> None:
    found = document()
    schemas = found["components"]["schemas"]
    assert schemas["State"]["enum"] == [state.value for state in State]
    assert found["info"]["version"] == __version__
    assert "x-shared" not in found


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_it_is_served_as_json(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "SafeLoader":  # as where PyYAML was built without libyaml
        monkeypatch.delattr("yaml.CSafeLoader")

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application())
        async with httpx.AsyncClient(transport=transport, base_url="http://edged", verify=NO_CERTIFICATES) as client:
            return [await client.get("/openapi.json") for _ in range(2)]

    answers = asyncio.run(ask())
    assert [answer.headers["content-type"] for answer in answers] == 2 * ["application/json"]
    assert [answer.json() for answer in answers] == 2 * [json.loads(json.dumps(document()))]
