import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import service.doctor
from service.config.load import Config
from service.doctor import CHECKS, FAIL, OK, WARN, Check, diagnose, exit_code
from tests.support.commands import COMMANDS
from tests.support.machines import machine, mended

FOLDER = Path(service.doctor.__file__).parent


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 0),
        ([(OK, 1), (WARN, 78)], 0),
        ([(FAIL, 1), (WARN, 78)], 1),
        ([(FAIL, 69), (FAIL, 1)], 69),
        ([(FAIL, 69), (FAIL, 73)], 73),
        ([(FAIL, 73), (FAIL, 77)], 77),
        ([(FAIL, 77), (FAIL, 78), (FAIL, 1)], 78),
    ],
)
def test_the_exit_code_is_that_of_what_is_to_be_mended_first(found, code):
    assert exit_code(Check("a", level, "b", "c", number) for level, number in found) == code


def test_all_checks_together_on_a_machine_that_has_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("service.doctor.packages.probe", lambda module: "no such module")
    monkeypatch.setattr("service.doctor.accelerator.probe", lambda module: {"missing": "libcuda.so.1"})
    (tmp_path / "images").mkdir()
    config = tmp_path / "edged.yaml"
    config.write_text(
        "state_dir: state\nserve: {port: 0, grpc_port: 0}\nmodels: [{name: m, calibration: {dir: images}}]\n"
    )
    found = list(diagnose(str(config), machine(tmp_path, uid=7)))
    names = [check.name for check in found]
    assert len(names) == len(set(names))
    assert len(names) > len(CHECKS)
    assert all(map(mended, found))
    assert {check.level for check in found} == {OK, WARN, FAIL}
    assert exit_code(found) == 1


def strings(tree):
    """Every text of a module but its docstrings; what is filled in becomes {}."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def keys(kind, prefix=""):
    """All keys of the config, such as worker.memory_max and models[].swap."""
    for field in dataclasses.fields(kind):
        yield prefix + field.name
        value = field.type if isinstance(field.type, str) else ""
        for section in vars(sys.modules["service.config.load"]).values():
            if dataclasses.is_dataclass(section) and section.__name__ in re.findall(r"\w+", value):
                name = f"{prefix}{field.name}{'[]' if 'tuple' in value else ''}."
                yield from keys(section, name)


def test_every_remedy_names_commands_and_keys_that_exist():
    known = set(keys(Config))
    assert {"worker.memory_max", "models[].calibration.images", "serve.port"} <= known
    texts = [text for file in FOLDER.glob("*.py") for text in strings(ast.parse(file.read_text()))]
    commands = {name for text in texts for name in re.findall(r"`edged ([a-z-]+)", text)}
    named = {
        key for text in texts for key in re.findall(r"\b(?:worker|serve|watch|log|models\[\])\.[a-z_.]*[a-z]", text)
    }
    assert commands >= {"check-config", "gc", "status", "doctor", "calib"}
    assert commands <= set(COMMANDS)
    assert named >= {"worker.memory_max", "serve.port", "models[].swap"}
    assert named <= known, named - known


def test_it_is_not_torch_that_the_command_imports():
    code = "import service.doctor, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
