import socket

import pytest

from edged.errors import AccessError
from service.config.load import load_config
from service.doctor.daemon import check_daemon
from tests.support.fake_daemon import fake_daemon
from tests.support.machines import machine, only


@pytest.fixture
def config(tmp_path):
    def make(serve="port: 0"):
        (tmp_path / "images").mkdir(exist_ok=True)
        path = tmp_path / "edged.yaml"
        path.write_text(
            f"state_dir: .\nmodels: [{{name: m, calibration: {{dir: images}}}}]\nserve: {{socket: s, {serve}}}\n"
        )
        return load_config(path)

    return make


def test_one_that_is_ready(tmp_path, config):
    with fake_daemon(tmp_path / "s") as script:
        script.answer("GET /v2/health/ready", {"ready": True})
        assert only(check_daemon(machine(tmp_path), config())).detail.startswith("runs and is ready")


@pytest.mark.parametrize(
    ("status", "answer", "level", "detail"),
    [
        (503, {"ready": False, "error": "model 'm' is starting"}, "warn", "not ready: model 'm' is starting"),
        (500, {"error": "broken"}, "fail", "answers with an error: broken"),
    ],
)
def test_one_that_is_not(tmp_path, config, status, answer, level, detail):
    with fake_daemon(tmp_path / "s") as script:
        script.answer("GET /v2/health/ready", answer, status=status)
        check = only(check_daemon(machine(tmp_path), config()))
        assert check.level == level
        assert detail in check.detail


def test_none_and_its_port_is_free(tmp_path, config):
    check = only(check_daemon(machine(tmp_path), config()))
    assert (check.level, check.detail) == ("ok", "none runs; 127.0.0.1:0 is free")


def test_none_and_another_program_has_its_port(tmp_path, config):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        check = only(check_daemon(machine(tmp_path), config(f"port: {port}")))
    assert (check.level, check.exit_code) == ("fail", 69)
    assert f"`ss -ltnp 'sport = :{port}'`" in check.fix


def test_none_and_another_program_has_its_port_for_grpc(tmp_path, config):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon, grpc = check_daemon(machine(tmp_path), config(f"port: 0, grpc_port: {port}"))
    assert (daemon.level, grpc.level, grpc.exit_code) == ("ok", "fail", 69)
    assert grpc.fix.endswith("stop it, or set serve.grpc_port")


@pytest.mark.parametrize(("active", "level"), [("active\n", "ok"), (None, "fail")])
def test_none_and_systemd_holds_its_port(tmp_path, config, active, level):
    """`systemctl is-active` fails unless it is."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        here = machine(tmp_path, commands={"systemctl is-active": active})
        check = only(check_daemon(here, config(f"port: {held.getsockname()[1]}")))
    assert (check.level, "edged.socket holds its port" in check.detail) == (level, level == "ok")


def test_an_address_of_another_machine(tmp_path, config):
    check = only(check_daemon(machine(tmp_path), config("host: 192.0.2.1, port: 0, allow_public: true")))
    assert (check.level, check.exit_code) == ("fail", 69)
    assert "serve.host" in check.fix


def test_a_socket_of_another_user(tmp_path, config, monkeypatch):
    def refuse(*_):
        raise AccessError("s may not be opened")  # root may open every socket

    monkeypatch.setattr("service.client.DaemonClient.get", refuse)
    assert only(check_daemon(machine(tmp_path), config())).exit_code == 77


def test_nothing_without_a_config(tmp_path):
    assert not list(check_daemon(machine(tmp_path), None))
