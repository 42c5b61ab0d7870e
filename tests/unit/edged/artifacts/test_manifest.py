import dataclasses
import json
import subprocess
import sys

import pytest

from edged.artifacts.manifest import SCHEMA_OF_LEVELS, SCHEMA_VERSION, Manifest
from edged.errors import ArtifactError
from edged.spec import Levels, Method, QuantSpec
from tests.support.artifact_samples import manifest


@pytest.mark.parametrize("classes", [("a", "b"), None])
def test_json_round_trip(classes: tuple[str, ...] | None) -> None:
    original = manifest(classes=classes)
    assert Manifest.from_json(original.to_json()) == original
    assert next(iter(json.loads(original.to_json()))) == "schema_version"


def test_a_detectors_thresholds_are_stored() -> None:
    original = manifest(task="detection", detection={"confidence": 0.5})
    assert Manifest.from_json(original.to_json()) == original


def test_the_warmup_entry_is_stored() -> None:
    warmup = {"sha256": "ab", "bytes": 9, "images": 4, "outputs_sha256": "cd", "threads": 2}
    original = manifest(warmup=warmup)
    assert Manifest.from_json(original.to_json()) == original
    data = original.to_dict()
    del data["warmup"]
    assert Manifest.from_dict(data).warmup is None  # written before warmup images were added


def test_manifests_from_before_detectors_are_of_classifiers() -> None:
    data = manifest().to_dict()
    del data["task"], data["detection"]
    assert Manifest.from_dict(data) == manifest()


def test_ranges_of_activations_are_stored() -> None:
    original = manifest(activations={"bits": 8, "ranges": {"x": [-1.0, 2.0]}, "float_layers": []})
    assert Manifest.from_json(original.to_json()) == original
    data = original.to_dict()
    del data["activations"]
    assert Manifest.from_dict(data).activations is None  # written by version 0.1.0


POWER = QuantSpec(method=Method.REQUANT, levels=Levels.POWER).to_dict()


def test_power_levels_have_a_schema_of_their_own() -> None:
    original = manifest(quantization=POWER, schema_version=SCHEMA_OF_LEVELS)
    assert Manifest.from_json(original.to_json()) == original
    with_ranges = original.to_dict() | {"activations": {"bits": 8, "ranges": {"x": [-1.0, 2.0]}, "float_layers": []}}
    with pytest.raises(ArtifactError, match="power levels, which no engine computes on integers"):
        Manifest.from_dict(with_ranges)


def test_manifests_from_before_levels_have_uniform_ones() -> None:
    data = manifest().to_dict()
    del data["quantization"]["levels"]
    assert Manifest.from_dict(data).schema_version == SCHEMA_VERSION


OPTIONAL = ("task", "detection", "warmup", "activations", "onnx", "serve")
NEEDED = [field.name for field in dataclasses.fields(Manifest) if field.name not in OPTIONAL]


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_raises_an_error_with_its_name(key: str) -> None:
    data = manifest().to_dict()
    del data[key]
    with pytest.raises(ArtifactError, match=key):
        Manifest.from_dict(data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", 3, "schema_version has value 3; this edged reads 1 and 2"),
        ("schema_version", 2, "'quantization.levels' has value 'uniform', and schema_version 2"),
        ("schema_version", 1.0, "schema_version has value 1.0"),
        ("schema_version", True, "schema_version' has value True; need int"),
        (
            "quantization",
            QuantSpec().to_dict() | {"levels": "power"},
            "levels' has value 'power', and schema_version 1",
        ),
        ("schema_version", "1", "schema_version has value '1'"),
        ("name", None, "'name' has value None; need str"),
        ("classes", "ab", "'classes' has value 'ab'"),
        ("classes", [1], r"'classes' has value \[1\]"),
        ("source", [], r"'source' has value \[\]; need dict"),
        ("source", {"sha256": "x"}, "lacks 'source.bytes'"),
        ("weights", {"sha256": 7, "bytes": 1}, "'weights.sha256' has value 7; need str"),
        ("weights", {"sha256": "x", "bytes": True}, "'weights.bytes' has value True; need int"),
        ("weights", {}, "lacks 'weights.sha256'"),
        ("warmup", {"sha256": "x"}, "lacks 'warmup.bytes'"),
        ("warmup", [1], r"'warmup' has value \[1\]; need dict"),
        ("activations", [1], r"'activations' has value \[1\]; need dict"),
        ("extra", 1, "unknown key 'extra'"),
        ("task", "segmentation", "'task' has value 'segmentation'; need classification or detection"),
        ("task", ["detection"], r"'task' has value \['detection'\]"),
        ("task", "detection", "'detection' has value None; need dict for detection"),
        ("detection", {}, "'detection' has value {}; need null for classification"),
    ],
)
def test_a_wrong_value_raises_an_error_with_its_key_and_value(key: str, value: object, message: str) -> None:
    data = json.loads(manifest().to_json()) | {key: value}
    with pytest.raises(ArtifactError, match=message) as caught:
        Manifest.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", b"\xff\xfe", "[" * 100_000])
def test_text_that_is_not_a_json_object_is_rejected(text: str | bytes) -> None:
    with pytest.raises(ArtifactError, match="manifest"):
        Manifest.from_json(text)


def test_the_supervisor_side_imports_no_heavy_package() -> None:
    code = (
        "import sys; import edged.artifacts.manifest, edged.artifacts.store;"
        "print([name for name in ('torch', 'numpy', 'PIL', 'safetensors') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
