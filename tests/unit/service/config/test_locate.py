from pathlib import Path

import pytest

from edged.errors import ConfigError
from service.config.locate import find_config, find_own_config, find_socket


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("EDGED_SOCKET", raising=False)
    monkeypatch.delenv("EDGED_CONFIG", raising=False)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_the_config_comes_from_the_option_the_environment_or_the_default(monkeypatch):
    assert find_config(None) == Path("/etc/edged/edged.yaml")
    monkeypatch.setenv("EDGED_CONFIG", "/known.yaml")
    assert find_config(None) == Path("/known.yaml")
    assert find_config("given.yaml") == Path("given.yaml")


def test_the_sources_of_the_socket_have_an_order(tmp_path, monkeypatch):
    given = write(tmp_path / "given.yaml", "state_dir: /given")
    known = write(tmp_path / "known.yaml", "state_dir: /known")
    assert find_socket(None, None) == "/var/lib/edged/edged.sock"
    monkeypatch.setenv("EDGED_CONFIG", known)
    assert find_socket(None, None) == "/known/edged.sock"
    monkeypatch.setenv("EDGED_SOCKET", "/run/known.sock")
    assert find_socket(None, None) == "/run/known.sock"
    assert find_socket(None, given) == "/given/edged.sock"
    assert find_socket("/run/given.sock", given) == "/run/given.sock"


@pytest.mark.parametrize(
    ("text", "socket"),
    [
        ("models: []", "/var/lib/edged/edged.sock"),
        ("state_dir: state", "{folder}/state/edged.sock"),
        ("state_dir: /s\nserve:", "/s/edged.sock"),
        ("state_dir: /s\nserve: {port: 1}", "/s/edged.sock"),
        ("state_dir: /s\nserve: {socket: run/e.sock}", "{folder}/run/e.sock"),
        ("serve: {socket: /run/e.sock}", "/run/e.sock"),
    ],
)
def test_the_socket_is_the_one_that_the_daemon_uses(tmp_path, text, socket):
    assert find_socket(None, write(tmp_path / "c.yaml", text)) == socket.format(folder=tmp_path)


@pytest.mark.parametrize("text", ["", "- 1", "{", "serve: 1", "just text"])
def test_an_invalid_config_is_an_error(tmp_path, text):
    with pytest.raises(ConfigError, match="run `edged check-config "):
        find_socket(None, write(tmp_path / "c.yaml", text))


def test_a_missing_config_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        find_socket(None, str(tmp_path / "none.yaml"))


def test_only_a_config_locates_the_state_folder_without_a_daemon(tmp_path, monkeypatch):
    path = write(tmp_path / "c.yaml", "state_dir: state")
    assert find_own_config(None, path) == Path(path)
    assert find_own_config("/run/given.sock", path) is None  # that daemon was meant, wherever its state lies
    assert find_own_config(None, str(tmp_path / "none.yaml")) is None
    monkeypatch.setenv("EDGED_SOCKET", "/run/known.sock")
    assert find_own_config(None, None) is None
    assert find_own_config(None, path) == Path(path)
