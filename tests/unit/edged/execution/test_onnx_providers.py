"""Providers are used in order, as far as they are there, and integers stay on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.execution.onnx_providers import NAMES, Providers, name_of
from edged.spec import PROVIDERS

TENSORRT, CUDA, CPU = (NAMES[name] for name in ("tensorrt", "cuda", "cpu"))


def used(providers: Providers, *available: str) -> list[str]:
    return [name for name, _ in providers.of_session(available)]


@pytest.mark.parametrize(
    ("wanted", "available", "expected", "missing"),
    [
        (["tensorrt", "cuda", "cpu"], [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU], []),
        (["cuda", "tensorrt"], [TENSORRT, CUDA, CPU], [CUDA, TENSORRT, CPU], []),
        (["cpu", "cuda"], [TENSORRT, CUDA, CPU], [CUDA, CPU], []),  # the CPU computes all that reaches it
        (["tensorrt", "cuda", "cpu"], [CUDA, CPU], [CUDA, CPU], ["tensorrt"]),
        (["tensorrt", "cuda"], ["AzureExecutionProvider", CPU], [CPU], ["tensorrt", "cuda"]),
        (["cpu"], [TENSORRT, CUDA, CPU], [CPU], []),
    ],
)
def test_what_is_there_is_used_in_order(
    wanted: list[str], available: list[str], expected: list[str], missing: list[str]
) -> None:
    providers = Providers(wanted)
    assert used(providers, *available) == expected
    assert providers.missing(expected) == missing
    assert used(Providers(wanted, integers=True), *available) == [CPU]
    assert Providers(wanted, integers=True).missing([CPU]) == []


def test_only_tensorrt_keeps_engines(tmp_path: Path) -> None:
    sessions = Providers(["tensorrt", "cuda"], engines=tmp_path).of_session([TENSORRT, CUDA])
    (_, tensorrt), (_, cuda), (_, cpu) = sessions
    assert tensorrt["trt_engine_cache_enable"] == "True"
    assert tensorrt["trt_engine_cache_path"] == tensorrt["trt_timing_cache_path"] == str(tmp_path)
    assert cuda == cpu == {}
    assert Providers(["tensorrt"]).of_session([TENSORRT])[0] == (TENSORRT, {})


def test_names_are_those_of_the_config() -> None:
    assert set(NAMES) == set(PROVIDERS)
    assert [name_of(NAMES[name]) for name in PROVIDERS] == list(PROVIDERS)
    assert name_of("AzureExecutionProvider") == "AzureExecutionProvider"
