import dataclasses
import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ConfigError
from edged.spec import RECIPES, Choice, DetectionSpec, QuantSpec, recipe
from service.config.load import (
    MAX_PROBLEMS,
    Config,
    InputConfig,
    InvalidConfigError,
    ModelConfig,
    QuantizationConfig,
    load_config,
)
from service.config.sections import CalibrationConfig, RuntimeConfig, TrustConfig
from service.ipc.options import Batching
from tests.support.repository import ROOT
from tests.support.signing import Signer

CONFIGS = ROOT / "configs"
MINIMAL = "models: [{name: m, calibration: {dir: images}}]\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path


def load(folder, text):
    path = folder / "edged.yaml"
    path.write_text(text)
    return load_config(path)


def problems(folder, text):
    with pytest.raises(InvalidConfigError) as caught:
        load(folder, text)
    assert caught.value.exit_code == 78
    return [(p.line, p.key, p.message) for p in caught.value.problems]


def model(text):
    return f"models:\n  - name: m\n    calibration: {{dir: images}}\n    {text}\n"


@pytest.mark.parametrize("name", ["data.yaml", "train.txt"])
def test_the_images_can_be_those_of_a_list(folder, name):
    text = f"models: [{{name: m, calibration: {{dir: {name}}}}}]"
    assert "there is no such file" in str(problems(folder, text))
    (folder / name).touch()
    assert load(folder, text).models[0].calibration.dir == folder / name


def test_two_keys_make_a_valid_config(folder):
    config = load(folder, MINIMAL)
    assert config == Config(models=(ModelConfig(name="m", calibration=config.models[0].calibration),))
    assert config.models[0].calibration.dir == folder / "images"
    assert (config.state_dir, config.drop_folder) == (Path("/var/lib/edged"), Path("/var/lib/edged/drop"))
    assert config.socket == Path("/var/lib/edged/edged.sock")
    assert config.models[0].quantization.to_spec() == QuantSpec(activation_bits="auto")


def test_the_keys_of_quantization_are_the_fields_of_its_spec_and_the_recipe():
    fields = {field.name for field in dataclasses.fields(QuantizationConfig)}
    assert fields == {"recipe", *QuantSpec().to_dict()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_changed_in_parts(folder, name):
    spec = load(folder, model(f"quantization: {{recipe: {name}, bits: 3}}")).models[0].quantization.to_spec()
    assert spec == recipe(name, bits=3, activation_bits="auto")


def test_values_are_read(folder):
    config = load(
        folder,
        """
state_dir: state
drop_dir: images
models:
  - name: a
    calibration: {dir: images, images: 64}
    quantization: {method: rtn, bits: 8, scheme: symmetric}
    input: {size: 32, mean: [0.5], std: [1]}
  - {name: b, calibration: {dir: images}, keep: 5}
watch: {mode: poll, settle_s: 1, max_bytes: 100MB}
worker: {memory_max: 1.5GiB}
serve: {port: 0, socket: /run/e.sock}
log: {format: json}
""",
    )
    assert (config.state_dir, config.drop_folder) == (folder / "state", folder / "images")
    first = config.model("a")
    assert first.calibration.images == 64
    spec = first.quantization.to_spec().to_dict()
    assert (spec["method"], spec["bits"], spec["scheme"]) == ("rtn", 8, "symmetric")
    assert first.input.overrides() == {"size": 32, "mean": [0.5], "std": [1.0]}
    assert config.model("b").keep == 5
    assert config.model("c") is None
    assert config.watch.settle_s == 1.0
    assert (config.watch.max_bytes, config.worker.memory_max) == (100_000_000, 3 << 29)
    assert (config.socket, config.log.format) == (Path("/run/e.sock"), "json")


def test_a_section_whose_keys_are_all_commented_out_is_empty(folder):
    assert load(folder, MINIMAL + "watch:\n# settle_s: 1\nserve:\n") == load(folder, MINIMAL)


def test_all_mistakes_are_reported_together_with_their_lines(folder):
    text = """modles: []
models:
  - name: a/b
    calibration: {dir: nowhere, images: "12"}
    quantization: {bits: 9, method: magic}
  - name: m
    keep: 1
  - {name: m, calibration: {dir: images}}
watch: {settle_s: -1, max_bytes: 3 parsecs}
serve:
  port: 99999
  token_file: nowhere
log: loud
"""
    found = problems(folder, text)
    assert [(line, key) for line, key, _ in found] == [
        (1, "modles"),
        (3, "models[0].name"),
        (4, "models[0].calibration.dir"),
        (4, "models[0].calibration.images"),
        (5, "models[0].quantization.bits"),
        (5, "models[0].quantization.method"),
        (6, "models[1].calibration"),
        (7, "models[1].keep"),
        (8, "models[2].name"),
        (9, "watch.max_bytes"),
        (9, "watch.settle_s"),
        (11, "serve.port"),
        (12, "serve.token_file"),
        (13, "log"),
    ]


def test_the_message_has_one_line_per_mistake(folder):
    with pytest.raises(InvalidConfigError) as caught:
        load(folder, MINIMAL + "log: {level: loud}\nwatch: {mode: 1}\n")
    assert str(caught.value).splitlines() == [
        f"{folder}/edged.yaml:2: log.level has value 'loud'; choose one of debug, info, warning, error",
        f"{folder}/edged.yaml:3: watch.mode has value 1; choose one of auto, poll",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("watch: {settle_sec: 1}", "is unknown; did you mean 'settle_s'?"),
        ("watch: {zzz: 1}", "is unknown; known here: max_bytes, mode, rescan_s, settle_max_s, settle_s"),
        ("watch: {settle_s: '1'}", "has value '1'; it must be a number"),
        ("watch: {settle_s: .nan}", "has value nan; it must be a finite number; leave the key out for its default"),
        ("watch: {settle_s: 1e12}", "has value '1e12'; YAML reads that as text; write 1.0e+12"),
        ("watch: {settle_s: 2.5E-3x}", "has value '2.5E-3x'; it must be a number"),
        ("serve: {head_timeout_s: 1.5e3}", "has value '1.5e3'; YAML reads that as text; write 1.5e+3"),
        ("serve: {min_body_rate: 0}", "has value 0; it must be at least 1 byte"),
        ("serve: {threads: 5000}", "has value 5000; it must be at most 1024"),
        ("serve: {max_connections: 10000000}", "has value 10000000; it must be at most 1000000"),
        (
            "serve: {port: 8001, grpc_port: 8001}",
            "has value 8001, which is serve.port too; choose another one, such as 8002",
        ),
        ("watch: {settle_s: 0}", "has value 0; it must be more than 0"),
        ("watch: [1]", "has a list as value; it must be a mapping of keys to values"),
        ("worker: {tries: true}", "has value True; it must be a whole number"),
        ("worker: {tries: 1.5}", "has value 1.5; it must be a whole number"),
        ("worker: {tries:}", "has no value; it must be a whole number"),
        ("worker: {threads: 0}", "has value 0; it must be at least 1, or auto"),
        ("worker: {threads: all}", "has value 'all'; it must be a whole number, or auto"),
        ("worker: {nice: 20}", "has value 20; it must be at most 19"),
        ("worker: {nice: -1}", "has value -1; it must be at least 0"),
        ("worker: {device: tpu}", "has value 'tpu'; did you mean 'cpu'? choose one of auto, cpu, cuda"),
        ("worker: {memory_max: lots}", "has value 'lots'; write bytes as a number or for example 800MiB"),
        ("serve: {host: 1}", "has value 1; it must be text; put it in quotes"),
        ("serve: {token_file: nowhere}", "has value 'nowhere'; there is no such file; create it or correct the path"),
        ("drop_dir: nowhere", "has value 'nowhere'; there is no such folder; create it or correct the path"),
        ("drop_dir: 1", "has value 1; it must be a path"),
        ("1: 2", "key 1 is not text; put it in quotes"),
        ("watch: {}\nwatch: {}", "given twice, first in line 2; remove one"),
        ("log: {format: " + "x" * 100 + "}", "has value '" + "x" * 56 + "...; choose one of auto, human, json"),
    ],
)
def test_each_kind_of_mistake_is_reported(folder, text, message):
    assert [found for _, _, found in problems(folder, MINIMAL + text)] == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: {size: 10, resize: 5}", "is impossible: input size 10 with resize 5: need 1 <= size <= resize"),
        ("input: {mean: [1, 2, 3]}", "is impossible: give mean and std together, or neither"),
        ("input: {mean: [1, 2], std: [1, 2, 3]}", "is impossible: mean has 2 and std 3 values; give both one"),
        ("input: {mean: [], std: [1]}", "has a list as value; it must be a list of at least one entry"),
        ("input: {mean: [0], std: [0]}", "has value 0; it must be more than 0"),
        ("quantization: {descending: 1}", "has value 1; it must be true or false"),
        ("thrust: {}", "is unknown; did you mean 'trust'?"),
        ("arch: resnet19", "has value 'resnet19'; did you mean 'resnet18'? choose one of resnet18, resnet34, "),
        ("detection: {confidence: 25}", "has value 25; it must be at most 1"),
        ("detection: {iou: -0.1}", "has value -0.1; it must be at least 0"),
        ("detection: {max_detections: 0}", "has value 0; it must be at least 1"),
        ("detection: {max_detections: 1001}", "has value 1001; it must be at most 1000"),
        ("detection: {confidance: 0.5}", "is unknown; did you mean 'confidence'?"),
    ],
)
def test_mistakes_in_a_model_are_reported(folder, text, message):
    [(line, key, found)] = problems(folder, model(text))
    assert line == 4
    assert key.startswith("models[0].")
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detection: {iou: 0.5}, arch: resnet18", "detection is for detectors, and resnet18 is a classifier"),
        ("input: {size: 640, resize: 700}, arch: yolov5s", "yolov5s letterboxes its images, so input.resize has"),
        ("input: {size: 650}, arch: yolov5s", "input.size is 650; yolov5s needs a multiple of 32"),
        ("input: {size: 1248}, arch: yolov5s6", "input.size is 1248; yolov5s6 needs a multiple of 64"),
    ],
)
def test_contradictory_settings_of_a_model_are_reported(folder, text, message):
    [(line, key, found)] = problems(folder, f"models:\n  - {{name: m, calibration: {{dir: images}}, {text}}}\n")
    assert (line, key) == (2, "models[0]")
    assert found.startswith(f"is impossible: {message}")


@pytest.mark.parametrize(
    ("text", "name", "providers"),
    [
        ("runtime: openvino", "openvino", ("cpu",)),
        ("runtime: {name: torch}", "torch", ("cpu",)),
        ("runtime: {}", "auto", ("cpu",)),
        ("runtime:", "auto", ("cpu",)),
        ("runtime: {name: onnxruntime, providers: [tensorrt, cuda, cpu]}", "onnxruntime", ("tensorrt", "cuda", "cpu")),
    ],
)
def test_an_engine_can_be_a_name_or_a_section(folder, text, name, providers):
    found = load(folder, model(text)).models[0]
    assert found.runtime == RuntimeConfig(name=name, providers=providers)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("runtime: onnx", "", "has value 'onnx'; choose one of auto, onnxruntime, openvino, torch"),
        ("runtime: [torch]", "", "has a list as value; did you mean 'torch'? choose"),
        ("runtime: {name: tensorflow}", ".name", "has value 'tensorflow'; "),
        ("runtime: {provider: cpu}", ".provider", "is unknown; did you mean 'providers'?"),
        ("runtime: {name: onnxruntime, providers: [gpu]}", ".providers[0]", "has value 'gpu'; "),
        ("runtime: {name: onnxruntime, providers: []}", ".providers", "has a list as value; it must be a list of at"),
        ("runtime: {name: onnxruntime, providers: [cuda, cuda]}", "", "is impossible: providers names cuda twice; "),
        ("runtime: {providers: [cuda]}", "", "is impossible: providers are ONNX Runtime's, and name is auto; set name"),
    ],
)
def test_mistakes_in_an_engine_are_reported(folder, text, key, message):
    [(line, found_key, found)] = problems(folder, model(text))
    assert (line, found_key) == (4, f"models[0].runtime{key}")
    assert found.startswith(message)


def test_a_detector_can_be_configured(folder):
    text = "arch: yolov5s6\n    input: {size: 960}\n    detection: {confidence: 0.4, iou: 1, max_detections: 10}"
    found = load(folder, model(text)).models[0]
    assert found.detection.to_spec() == DetectionSpec(0.4, 1.0, 10)
    assert found.input.overrides() == {"size": 960}
    assert load(folder, model("arch: yolov5\n    input: {size: 100}"))  # rows of its own: the worker knows its strides
    assert load(folder, MINIMAL).models[0].detection.to_spec() == DetectionSpec()


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("keep: 3", Choice()),
        ("stem_pooling: true", Choice(stem_pooling="true")),
        ("stem_pooling: false", Choice(stem_pooling="false")),
        ("stem_pooling: auto", Choice()),
        ("stride_in: 1x1", Choice(stride_in="1x1")),
        ("head: [linear, relu, dropout, linear]", Choice(head=("linear", "relu", "dropout", "linear"))),
        ("weights: last\n    checkpoint: {key: a, prefix: b.}", Choice("a", "b.", "last")),
    ],
)
def test_the_reading_of_a_checkpoint_can_be_configured(folder, text, choice):
    found = load(folder, model(text)).models[0]
    assert found.choice == choice
    assert (found.key("ab") == load(folder, model("keep: 3")).models[0].key("ab")) == (choice == Choice())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem_pooling: maybe", "has value 'maybe'; choose one of auto, true, false"),
        ("stride_in: 7x7", "has value '7x7'; choose one of auto, 3x3, 1x1"),
        ("head: [linear, softmax]", "has value 'softmax'; choose one of linear, batchnorm"),
        ("head: [relu]", "is impossible: head has 1 layers; give 1 to 32, one of them linear"),
    ],
)
def test_an_impossible_reading_is_reported(folder, text, message):
    [(_, _, found)] = problems(folder, model(text))
    assert found.startswith(message)


@pytest.mark.parametrize("text", ["cat\nsea dog\n", "\ufeffcat\r\nsea dog\r\n\r\n", "cat\nsea dog"])
def test_labels_are_a_list_or_a_file(folder, text):
    (folder / "labels.txt").write_text(text)
    for labels in ("[cat, sea dog]", "labels.txt"):
        found = load(folder, model(f"labels: {labels}")).models[0]
        assert found.labels == ("cat", "sea dog")
        assert found.key("ab") == load(folder, MINIMAL).models[0].key("ab")  # nothing is quantized again for them
    assert load(folder, MINIMAL).models[0].labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: []", "has a list as value; there are no names; give one for each class"),
        ("labels: [cat, no]", "has a list as value; name 1 is False, no text; put it in quotes"),
        ("labels: [cat, '']", "has a list as value; name 1 is ''; give 1 to 200 characters"),
        ('labels: ["a\\nb"]', "has a list as value; name 0 is 'a\\nb'; give"),
        (f"labels: [{'x' * 201}]", "has a list as value; name 0 is 'xxxx"),
        ("labels: none.txt", "has value 'none.txt'; there is no such file"),
        ("labels: {a: cat}", "has a mapping as value; it must be a list of names, or the path of a text file"),
        ("labels: empty.txt", "has value 'empty.txt'; FOLDER/empty.txt: there are no names"),
        ("labels: gap.txt", "has value 'gap.txt'; FOLDER/gap.txt: name 1 is ''; give"),
        ("labels: latin.txt", "has value 'latin.txt'; FOLDER/latin.txt is not UTF-8 text: byte 0; save"),
    ],
)
def test_mistakes_in_labels_are_reported(folder, text, message):
    (folder / "empty.txt").touch()
    (folder / "gap.txt").write_text("a\n\nb\n")
    (folder / "latin.txt").write_bytes("ä".encode("latin-1"))
    [(line, key, found)] = problems(folder, model(text))
    assert (line, key) == (4, "models[0].labels")
    assert found.startswith(message.replace("FOLDER", str(folder)))


def test_labels_can_be_compared_with_a_generation(folder):
    path = folder / "edged.yaml"
    path.write_text(model("labels: [cat]"))
    assert load_config(path, problem_of_labels=lambda config, model: None).models[0].labels == ("cat",)
    with pytest.raises(InvalidConfigError, match=r"edged\.yaml:4: models\[0\]\.labels m does not fit"):
        load_config(path, problem_of_labels=lambda config, model: f"{model.name} does not fit")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".a", "a b", "ä", "a\n", "x" * 129])
def test_an_invalid_model_name_is_rejected(folder, name):
    text = yaml.safe_dump({"models": [{"name": name, "calibration": {"dir": "images"}}]})
    [(_, key, _)] = problems(folder, text)
    assert key == "models[0].name"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "is empty"),
        ("# nothing\n", 1, "is empty"),
        ("- 1\n", 1, "is not a mapping"),
        ("just text", 1, "is not a mapping"),
        ("a: [1,\nb: 2", 2, "not valid YAML"),
        ("a: 1\nb: {c: *nowhere}", 2, "not valid YAML: found undefined alias"),
        ("a: &a [*a]", 1, "not valid YAML"),
        ("".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 9)).replace("*a0", "1"), 1, "not valid YAML"),
        ("a: !!python/name:os.system", 1, "not valid YAML: could not determine a constructor"),
        ("state_dir: !!python/object/apply:os.system [ls]\nmodels: 1", 1, "has a list as value; it must be a path"),
        ("\0", 1, "not valid YAML"),
        ("a: 2020-99-99", 1, "not valid YAML"),
        ("models: []", 1, "has a list as value; it must be a list of at least one entry"),
        ("models: {}", 1, "has a mapping as value; it must be a list of at least one entry"),
        ("state_dir: x", 1, "is missing; it has no default"),
    ],
)
def test_files_that_are_not_a_config_are_rejected(folder, text, line, message):
    found = problems(folder, text)
    assert found[0][0] == line
    assert found[0][2].startswith(message)


def test_unreadable_files_are_an_error(folder):
    for path, message in ((folder / "none.yaml", "No such file"), (folder, "Is a directory")):
        with pytest.raises(ConfigError, match=message):
            load_config(path)
    (folder / "latin").write_bytes(b"state_dir: \xe9")
    with pytest.raises(ConfigError, match="not UTF-8 text: byte 11"):
        load_config(folder / "latin")
    (folder / "huge").write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="over 1 MiB"):
        load_config(folder / "huge")


def test_a_socket_path_that_is_too_long_is_reported(folder):
    [(line, key, message)] = problems(folder, MINIMAL + f"state_dir: {'x' * 100}\n")
    assert (line, key) == (2, "state_dir")
    assert "at most 107 work; set serve.socket" in message
    assert load(folder, MINIMAL + f"state_dir: {'x' * 100}\nserve: {{socket: /run/e.sock}}\n")


def test_the_drop_folder_must_not_be_the_state_folder(folder):
    assert problems(folder, MINIMAL + "state_dir: images\ndrop_dir: images/../images\n") == [
        (3, "drop_dir", "is the state_dir; choose another folder")
    ]


def test_a_state_folder_that_is_a_file(folder):
    (folder / "state").write_bytes(b"")
    ((line, name, message),) = problems(folder, MINIMAL + "state_dir: state\n")
    assert (line, name) == (2, "state_dir")
    assert "which is a file; remove it or choose a folder" in message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "fe80::1", "edge-box.example"])  # noqa: S104 - it is what is refused
@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ("", False),
        ("allow_public: false", False),
        ("allow_public: true", True),
        ("token_file: token", True),
        ("inference_token_file: token", True),
    ],
)
def test_a_public_address_needs_a_token_or_permission(folder, monkeypatch, host, more, allowed):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (folder / "token").touch()
    text = f"{MINIMAL}serve:\n  host: '{host}'\n  {more}\n"
    if allowed:
        assert load(folder, text).serve.public
    else:
        [(line, key, message)] = problems(folder, text)
        assert (line, key) == (3, "serve.host")
        assert message.startswith(f"has value '{host}', which other machines can reach, and there is no token;")


def test_grpc_needs_its_package(folder, monkeypatch):
    text = f"{MINIMAL}serve:\n  grpc_port: 8001\n"
    assert load(folder, text).serve.grpc_port == 8001
    assert load(folder, MINIMAL).serve.grpc_port is None
    assert load(folder, f"{MINIMAL}serve: {{port: 0, grpc_port: 0}}").serve.grpc_port == 0  # any two free ones
    monkeypatch.setitem(sys.modules, "grpc", None)  # as if it were not installed
    [(line, key, message)] = problems(folder, text)
    assert (line, key) == (3, "serve.grpc_port")
    assert message == "has value 8001, but grpcio is not installed; `pip install 'edged[grpc]'`, or remove it"


def test_keys_are_read_from_their_files(folder):
    old, new = Signer(folder, "old"), Signer(folder, "new")
    trust = load(folder, model("trust: {keys: [old.pub, new.pub], refuse_downgrade: true}")).models[0].trust
    assert trust == TrustConfig(keys=(old.key, new.key), refuse_downgrade=True)
    assert load(folder, model("trust: {keys: []}")).models[0].trust == TrustConfig()


@pytest.mark.parametrize(
    ("trust", "key", "message"),
    [
        ("{keys: [none.pub]}", "trust.keys[0]", "has value 'none.pub'; there is no such file"),
        ("{keys: [old.key]}", "trust.keys[0]", "old.key is a private key; give the public one"),
        ("{keys: [edged.yaml]}", "trust.keys[0]", "edged.yaml is no public key in PEM"),
        ("{keys: [old.pub, copy.pub]}", "trust", "keys has one key twice, as old.pub and copy.pub"),
        ("{keys: }", "trust.keys", "has no value; it must be a list of at least one entry"),
        ("{keys: old.pub}", "trust.keys", "has value 'old.pub'; it must be a list"),
        ("{refuse_downgrade: true}", "trust", "refuse_downgrade compares signed versions, and there are no keys"),
    ],
)
def test_mistakes_in_keys_are_reported(folder, trust, key, message):
    """An empty value is a mistake, because it would accept everything: no keys are written as []."""
    Signer(folder, "old")
    (folder / "copy.pub").write_bytes((folder / "old.pub").read_bytes())
    [(line, found, text)] = problems(folder, model(f"trust: {trust}"))
    assert (line, found) == (4, f"models[0].{key}")
    assert message in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_address_needs_no_token(folder, host):
    assert not load(folder, f"{MINIMAL}serve: {{host: '{host}'}}").serve.public


def test_a_systemd_credential_is_the_administration_token(folder, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert load(folder, MINIMAL).serve.admin_token is None
    for name in ("edged-token", "token"):
        (folder / name).touch()
    assert load(folder, MINIMAL + "serve: {host: '::'}").serve.admin_token == folder / "edged-token"
    assert load(folder, MINIMAL + "serve: {token_file: token}").serve.admin_token == folder / "token"


def test_the_key_depends_only_on_settings_that_affect_the_result(folder):
    base = load(folder, model("keep: 3")).models[0]
    Signer(folder, "release")
    keys = ("keep: 9", "swap: resource", "batching: {max_batch: 4}", "report_images: 0", "trust: {keys: [release.pub]}")
    changed = "\n    ".join(keys)
    same = load(folder, model(changed)).models[0]
    assert base.key("ab") == same.key("ab")
    assert base.key("ab").startswith("ab:")
    changes = ("arch: resnet18", "quantization: {bits: 3}", "gates: {max_drop: 1}", "input: {size: 32}")
    gates = ("gates: {min_accuracy: 70}", "gates: {min_shadow_agreement: 90}")
    for change in (*changes, *gates, "detection: {iou: 0.5}", "runtime: onnxruntime"):
        assert load(folder, model(change)).models[0].key("ab") != base.key("ab")


def test_the_key_does_not_depend_on_providers(folder):
    """They compute the same codes; the name of the engine decides which codes there are."""
    base = load(folder, model("runtime: onnxruntime")).models[0]
    same = load(folder, model("runtime: {name: onnxruntime, providers: [cuda, cpu]}")).models[0]
    assert base.key("ab") == same.key("ab")


def test_tensorrt_takes_symmetric_weights_only(folder):
    with pytest.raises(InvalidConfigError, match=r"set quantization\.scheme: symmetric"):
        load(folder, model("runtime: tensorrt"))
    given = load(folder, model("runtime: tensorrt\n    quantization: {scheme: symmetric}"))
    assert given.models[0].runtime.name == "tensorrt"


def test_cpu_is_the_last_provider(folder):
    with pytest.raises(InvalidConfigError, match="write cpu last"):
        load(folder, model("runtime: {name: onnxruntime, providers: [cpu, cuda]}"))


def test_the_key_is_that_of_0_1_0():
    """Files that 0.1.0 has quantized are not quantized again: the digest is what that version computed."""
    model = ModelConfig(name="m", calibration=CalibrationConfig(dir=Path("/images")))
    assert model.digest() == "e07794e663f6f861fc95abb3a4b573d9dadf687fd7effa137f68f0ab6473ed72"


def test_activation_bits(folder):
    def configured(value):
        return load(folder, model(f"quantization: {{activation_bits: {value}}}")).models[0]

    missing = load(folder, model("keep: 3")).models[0]
    found = {value: configured(value) for value in ("auto", "8", "null")}
    specs = {value: each.quantization.to_spec().activation_bits for value, each in found.items()}
    assert specs == {"auto": "auto", "8": 8, "null": None}
    assert missing.quantization == found["auto"].quantization
    assert len({each.key("ab") for each in found.values()}) == 3
    with pytest.raises(InvalidConfigError, match="activation_bits has value 7; write auto, 8 or null"):
        configured("7")
    with pytest.raises(InvalidConfigError, match="activation_bits has value 'none'; write auto, 8 or null"):
        configured("none")


def test_batching_is_read(folder):
    assert load(folder, model("keep: 3")).models[0].batching.to_batching() == Batching(1, 0.0)
    given = load(folder, model("batching: {max_batch: 8, max_delay_ms: 5}")).models[0].batching
    assert given.to_batching() == Batching(8, 0.005)
    with pytest.raises(InvalidConfigError, match="batching is impossible: max_delay_ms waits for a batch"):
        load(folder, model("batching: {max_delay_ms: 5}"))


def test_live_requests_are_sampled_only_with_a_probation(folder):
    gates = "gates: {min_shadow_agreement: 90, shadow_percent: 25}"
    assert load(folder, model(gates)).models[0].shadow_percent == 25
    assert load(folder, model(f"{gates}\n    probation_s: 0")).models[0].shadow_percent is None
    assert load(folder, model("keep: 3")).models[0].shadow_percent is None


def test_merge_keys_and_anchors_work(folder):
    text = """
models:
  - &first {name: a, calibration: {dir: images}, quantization: {bits: 3}}
  - {<<: *first, name: b}
"""
    assert [m.quantization.bits for m in load(folder, text).models] == [3, 3]


KEYS = st.text() | st.sampled_from(["models", "watch", "name", "calibration", "dir"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)))
def test_any_yaml_gives_a_config_or_reported_mistakes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):  # no calibration folder can be guessed
        load_config(path)


@given(st.binary(max_size=200))
def test_any_bytes_give_reported_mistakes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_config(path)


def sections(section, name=""):
    """All keys, with their defaults."""
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default):
            yield from sections(type(field.default), f"{name}{field.name}.")
        elif field.name != "models":
            yield f"{name}{field.name}", field.default


ALL_KEYS = [*sections(Config), *sections(ModelConfig)]


def test_the_annotated_config_contains_every_key_and_default(folder):
    text = (CONFIGS / "edged.yaml").read_text()
    written = load(folder, text.replace("/srv/calibration/classifier", "images"))
    calibration = written.models[0].calibration
    assert written == Config(models=(ModelConfig(name="classifier", calibration=calibration),))
    assert calibration.images == 1024
    for key, default in ALL_KEYS:
        name = key.rpartition(".")[2]
        optional = default is None
        assert re.search(rf"^ *(- )?{'# ' if optional else ''}{name}:", text, re.MULTILINE), key


def test_every_commented_key_of_the_annotated_config_is_valid(folder):
    text = (CONFIGS / "edged.yaml").read_text().replace("/srv/calibration/classifier", "images")
    optional = "|".join(key.rpartition(".")[2] for key, default in ALL_KEYS if default is None)
    text = re.sub(rf"^( *)# ((?:{optional}): \S.*)$", r"\1\2", text, flags=re.MULTILINE)
    text = text.replace(" bits: 4", " bits: auto")  # which its limits need
    for path in ("/srv/checkpoints", "/etc/edged/token", "/etc/edged/inference-token"):
        assert path in text
    (folder / "token").touch()
    (folder / "inference-token").touch()
    config = load(folder, text.replace("/srv/checkpoints", "images").replace("/etc/edged/", ""))
    assert (config.models[0].input, config.worker.memory_max) == (
        InputConfig(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        1 << 30,
    )


def test_the_demo_config_is_valid(folder):
    (folder / "digits").mkdir()
    config = load(folder, (CONFIGS / "demo.yaml").read_text())
    assert (config.models[0].name, config.serve.port, config.state_dir) == ("digits", 0, folder / "state")


@pytest.mark.parametrize(
    ("written", "fixed"), [("", None), ("threads: auto", None), ("threads:", None), ("threads: 2", 2)]
)
def test_threads_of_the_worker(folder, written, fixed):
    config = load(folder, f"{MINIMAL}worker: {{{written}}}")
    assert config.worker.fixed_threads == fixed
    assert config.worker.threads == ("auto" if fixed is None else fixed)


def test_thousands_of_mistakes_are_counted_and_the_first_ones_listed(tmp_path):
    path = tmp_path / "edged.yaml"
    path.write_text("".join(f"key{number}: 1\n" for number in range(1250)))
    with pytest.raises(InvalidConfigError) as caught:
        load_config(path)
    *first, last = str(caught.value).splitlines()
    assert len(first) == MAX_PROBLEMS
    assert first[3].startswith(f"{path}:3: key2 is unknown")
    assert last == f"{path}: and 1,151 more; correct these first"  # models is missing, too
    assert len(caught.value.problems) == 1251


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state_dir: !!timestamp x", "1:  not valid YAML: it is no timestamp"),
        ('state_dir: "\\ud800"', "1:  not valid YAML: it holds half of a character"),
        ('"\\ud800": 1', "1:  not valid YAML: it holds half of a character"),
        (f"state_dir: {'a' * 256}", "it is too long for a path"),
        (f"state_dir: {'a/' * 2048}", "it is too long for a path"),
        (f"watch: {{settle_s: {10**400}}}", "it must be a finite number"),
    ],
)
def test_values_that_no_program_can_use(tmp_path, text, message):
    path = tmp_path / "edged.yaml"
    path.write_text(f"{text}\n")
    with pytest.raises(InvalidConfigError) as caught:
        load_config(path)
    assert message.replace("1:  ", "1: ") in str(caught.value)
