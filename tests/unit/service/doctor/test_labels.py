"""Class names in the config are compared with the generation in service, where it can be read."""

from pathlib import Path

from edged.artifacts.store import ModelStore
from service.config.load import load_config
from service.doctor.configured import read_config
from service.doctor.labels import problem_of_labels
from tests.support.artifacts import write_untrained


def test_the_number_of_names_is_that_of_the_classes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("state_dir: .\nmodels:\n  - name: digits\n    calibration: {dir: images}\n    labels: [a, b]\n")
    config = load_config(path)
    model = config.models[0]
    assert problem_of_labels(config, model) is None  # nothing serves yet
    write_untrained(tmp_path / "artifact")
    store = ModelStore(tmp_path / "models")
    store.switch("digits", store.publish("digits", tmp_path / "artifact"))
    text = "has 2 names, and generation 1 in service has 10 classes; give one for each"
    assert problem_of_labels(config, model) == text
    ((check,), _) = read_config(str(path))
    assert (check.level, check.detail) == ("fail", f"{path}:5: models[0].labels {text}")
    path.write_text(path.read_text().replace("[a, b]", f"[{', '.join('abcdefghij')}]"))
    config = load_config(path)
    assert problem_of_labels(config, config.models[0]) is None
    (store.path("digits", 1) / "manifest.json").write_text("[]")
    assert problem_of_labels(config, model) is None
