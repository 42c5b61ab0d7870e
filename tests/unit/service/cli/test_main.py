import json
import os
import re
import sys
from pathlib import Path

import pytest

from service import doctor
from service.cli import main as cli
from tests.support.commands import CLIENT_COMMANDS, COMMANDS, DAEMON_COMMANDS, call
from tests.support.fake_daemon import fake_daemon

STATUS = {"ready": True, "models": [{"name": "m", "ready": True, "generation": 3},
                                    {"name": "n", "ready": False, "generation": None}],
          "updates": [{"id": 5, "model": "m", "file_name": "a", "state": "CLAIMED"}]}  # fmt: skip


def fill(folder, count=32):
    folder.mkdir(exist_ok=True)
    for index in range(count):
        (folder / f"{index}.jpg").write_bytes(b"\xff\xd8\xff\xe0")


QUANTIZE = ["quantize", "a.pth", "--calib", "images", "--out", "out"]


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with fake_daemon(tmp_path / "s") as script:
        monkeypatch.setenv("EDGED_SOCKET", str(tmp_path / "s"))
        script.answer("GET /edged/v1/status", {**STATUS, "drop_dir": str(tmp_path / "drop")})
        yield script


@pytest.fixture
def config(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("state_dir: state\nserve: {port: 0}\nmodels: [{name: m, calibration: {dir: images}}]\n")
    return str(path)


@pytest.mark.parametrize("command", [*DAEMON_COMMANDS, *CLIENT_COMMANDS])
def test_every_command_has_help_with_an_example_and_the_exit_codes(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert re.search(rf"^example:\n  edged {command}", out, re.MULTILINE)
    assert "69 unavailable; 73 cannot write state;" in out


def test_the_help_names_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert re.findall(r"^    ([a-z]\S*(?: [a-z]+)?)(?=  |$)", out, re.MULTILINE) == COMMANDS


def test_the_version_is_told(capsys):
    assert call(capsys, "--version") == (0, "edged 0.1.0\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "edged: the following arguments are required: COMMAND; see edged --help"),
        (["fly"], "edged: argument COMMAND: invalid choice: 'fly'"),
        (["hstory"], "edged: argument COMMAND: invalid choice: 'hstory'; did you mean history?"),
        (["status", "--fly"], "edged: unrecognized arguments: --fly; see edged --help"),
        (["status", "--jsno"], "edged: unrecognized arguments: --jsno; did you mean --json? see edged --help"),
        (["status", "m", "n"], "edged: unrecognized arguments: n; see edged --help"),
        (
            [*QUANTIZE, "--method", "fastobg"],
            "edged quantize: argument --method: invalid choice: 'fastobg'; did you mean",
        ),
        (
            [*QUANTIZE, "--recipe", "balnced"],
            "edged quantize: argument --recipe: invalid choice: 'balnced'; did you mean",
        ),
        ([*QUANTIZE, "--last-bits", "9"], "edged quantize: argument --last-bits: invalid choice: 9 (choose from 2, 3"),
        (["submit", "x"], "edged submit: the following arguments are required: --model; see edged submit --help"),
        (["submit", "x", "--modle", "m"], "edged submit: the following arguments are required: --model"),
        (["submit", "x", "--model", "m", "--timeout", "1"], "edged: --timeout and --until-end need --wait"),
        (["submit", "x", "--model", "m", "--until-end"], "edged: --timeout and --until-end need --wait"),
        (["submit", "x", "--model", "m", "--timeout", "soon"], "edged submit: argument --timeout: invalid float"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(capsys, arguments, message):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_status(capsys, daemon):
    code, out, err = call(capsys, "status")
    assert (code, err) == (0, "")
    assert "m      serving      3" in out
    code, out, _ = call(capsys, "status", "--json")
    assert code == 0
    assert json.loads(out)["models"] == STATUS["models"]


def test_status_of_one_model_says_by_its_exit_code_whether_it_serves(capsys, daemon):
    code, out, _ = call(capsys, "status", "m", "--json")
    assert code == 0
    assert [m["name"] for m in json.loads(out)["models"]] == ["m"]
    code, out, err = call(capsys, "status", "n")
    assert (code, err) == (4, "edged: model 'n' is not in service\n")
    code, _, err = call(capsys, "status", "x")
    assert (code, err) == (2, "edged: no model 'x'; configured: m, n\n")
    code, _, err = call(capsys, "status", "nn")
    assert (code, err) == (2, "edged: no model 'nn'; did you mean 'n'? configured: m, n\n")


def test_history(capsys, daemon):
    update = {"id": 5, "model": "m", "file_name": "a.pth", "state": "COMMITTED", "generation": 3}
    daemon.answer("GET /edged/v1/models/m/history", {"model": "m", "current": 3, "previous": 2, "updates": [update]})
    daemon.answer("GET /edged/v1/updates", {"updates": []})
    code, out, _ = call(capsys, "history", "m")
    assert code == 0
    assert "generation 3 is live, 2 is the previous one" in out
    assert call(capsys, "history") == (0, "no updates yet\n", "")
    assert json.loads(call(capsys, "history", "m", "--json")[1])["updates"] == [update]


@pytest.mark.parametrize(
    ("command", "hold", "told"),
    [
        ("pin", {"pinned": True, "paused": False}, "m: pinned to generation 3, not paused\n"),
        ("unpin", {"pinned": False, "paused": True}, "m: not pinned, paused\n"),
        ("pause", {"pinned": False, "paused": True}, "m: not pinned, paused\n"),
        ("resume", {"pinned": False, "paused": False}, "m: not pinned, not paused\n"),
    ],
)
def test_holds(capsys, daemon, command, hold, told):
    answer = {"model": "m", "generation": 3, **hold}
    daemon.answer(f"POST /edged/v1/models/m/{command}", answer)
    assert call(capsys, command, "m") == (0, told, "")
    code, out, _ = call(capsys, command, "m", "--json")
    assert (code, json.loads(out)) == (0, answer)


def test_gc_lists_what_went_or_would(capsys, daemon):
    removed = [{"kind": "generation", "model": "m", "path": "models/m/gen/1", "bytes": 3 << 20}]
    answer = {"dry_run": True, "removed": removed, "bytes": 3 << 20, "skipped": None}
    daemon.answer("POST /edged/v1/gc?dry_run=true", answer)
    daemon.answer("POST /edged/v1/gc?dry_run=false", {**answer, "dry_run": False, "skipped": "this: because"})
    code, out, _ = call(capsys, "gc", "--dry-run")
    assert (code, out.splitlines()) == (0, ["   3.0 MiB  generation   models/m/gen/1", "would be removed: 1, 3.0 MiB"])
    assert call(capsys, "gc")[1].splitlines()[1:] == ["removed: 1, 3.0 MiB", "skipped this: because"]


def test_rollback(capsys, daemon):
    daemon.answer("POST /edged/v1/models/m/rollback", {"model": "m", "from": 3, "to": 2})
    assert call(capsys, "rollback", "m") == (0, "m: generation 2 is live again, in place of 3\n", "")
    daemon.answer("POST /edged/v1/models/m/rollback", {"model": "m", "from": 3, "to": 1})
    assert call(capsys, "rollback", "m", "--to", "1") == (0, "m: generation 1 is live again, in place of 3\n", "")
    assert daemon.bodies == [b"", b'{"to": 1}']
    for wrong in ("0", "-1", "two", "1.5"):
        code, _, err = call(capsys, "rollback", "m", f"--to={wrong}")
        assert (code, f"'{wrong}' is no number from 1 on" in err) == (2, True)
    refusal = {"error": "model 'n' has no generation before", "code": "not_ready"}
    daemon.answer("POST /edged/v1/models/n/rollback", refusal, status=409)
    assert call(capsys, "rollback", "n") == (4, "", "edged: model 'n' has no generation before\n")
    code, out, _ = call(capsys, "rollback", "n", "--json")
    assert (code, json.loads(out)) == (4, refusal)


def test_a_name_from_the_command_line_stays_inside_its_url(capsys, daemon):
    call(capsys, "rollback", "../m?x#\r\ny")
    assert daemon.asked[-1] == "POST /edged/v1/models/..%2Fm%3Fx%23%0D%0Ay/rollback"


@pytest.mark.parametrize(
    ("state", "code"), [("COMMITTED", 0), ("REJECTED", 3), ("FAILED", 1), ("ROLLED_BACK", 5), ("DEFERRED", 75)]
)
def test_submit_waits_and_leaves_with_the_outcome(capsys, daemon, tmp_path, state, code):
    (tmp_path / "drop" / "m").mkdir(parents=True)
    (tmp_path / "a.pth").write_bytes(b"x")
    update = {"id": 6, "model": "m", "state": state, "file_name": "a.pth", "sha256": None, "code": "x", "reason": "y"}
    daemon.answer("GET /edged/v1/updates", {"updates": [{"id": 5}]}, {"updates": [update]})
    found, out, err = call(capsys, "submit", str(tmp_path / "a.pth"), "--model", "m", "--wait", "--json")
    assert found == code
    assert json.loads(out) == update
    dropped, err = err.split("\n", 1)
    assert dropped.endswith(" s  dropped a.pth for m, 1 B")
    assert re.fullmatch(rf" +\d+\.\d s  update 6 of m \(a\.pth\): {state}: y\n", err)


def test_submit_without_waiting_says_how_to_follow(capsys, daemon, tmp_path):
    (tmp_path / "drop" / "m").mkdir(parents=True)
    (tmp_path / "a.pth").write_bytes(b"x")
    daemon.answer("GET /edged/v1/updates", {"updates": []})
    code, out, _ = call(capsys, "submit", str(tmp_path / "a.pth"), "--model", "m")
    assert (code, out) == (0, "dropped a.pth for m; follow it with `edged status`\n")


def test_no_daemon_is_69(capsys, tmp_path):
    for command in (["status"], ["history"], ["rollback", "m"]):
        code, out, err = call(capsys, *command, "--socket", str(tmp_path / "none"), "--json")
        assert code == 69
        assert json.loads(out)["code"] == "unavailable"
        assert err.startswith("edged: no daemon answers at ")


def test_check_config(capsys, config, tmp_path):
    fill(tmp_path / "images")
    valid = (0, f"{config} is valid: 1 model(s): m\n", "")
    assert call(capsys, "check-config", "--config", config) == call(capsys, "check-config", config) == valid
    code, out, _ = call(capsys, "check-config", "--config", config, "--json")
    assert (code, json.loads(out)["drop_dir"]) == (0, str(tmp_path / "state" / "drop"))
    Path(config).write_text("modles: []\nlog: loud\n")
    code, out, err = call(capsys, "check-config", config, "--json")
    assert code == 78
    assert [(p["line"], p["key"]) for p in json.loads(out)["problems"]] == [(1, "models"), (1, "modles"), (2, "log")]
    assert err.count("\n") == 3
    assert call(capsys, "check-config", str(tmp_path / "none"))[0] == 78
    code, _, err = call(capsys, "check-config", config, "--config", config)
    assert (code, err) == (2, "edged: give the config file once: as FILE or with --config\n")


def test_check_config_finds_everything_at_once(capsys, tmp_path):
    fill(tmp_path / "good")
    fill(tmp_path / "few", 5)
    (tmp_path / "few" / "note.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    config = tmp_path / "edged.yaml"
    config.write_text("""\
models:
  - {name: a, calibration: {dir: good}}
  - name: b
    arch: resnet-18
    calibration:
      dir: empty
  - name: c
    calibration: {dir: few}
    quantization: {recipe: balnced, method: fastobg, bitts: 4}
  - {name: d, calibration: {dir: nowhere}}
""")
    code, out, err = call(capsys, "check-config", str(config), "--json")
    assert code == 78
    found = [(p["line"], p["key"], p["message"]) for p in json.loads(out)["problems"]]
    expected = [
        (4, "models[1].arch", "has value 'resnet-18'; did you mean 'resnet18'? choose one of resnet18, "),
        (
            6,
            "models[1].calibration.dir",
            f"has value 'empty'; {tmp_path / 'empty'} has 0 usable images; put at least 32",
        ),
        (
            8,
            "models[2].calibration.dir",
            f"has value 'few'; {tmp_path / 'few'} has 5 usable images (note.jpg begins like",
        ),
        (9, "models[2].quantization.bitts", "is unknown; did you mean 'bits'?"),
        (9, "models[2].quantization.method", "has value 'fastobg'; did you mean 'fastobq'? choose one of fastobq, "),
        (9, "models[2].quantization.recipe", "has value 'balnced'; did you mean 'balanced'? choose one of fast, "),
        (
            10,
            "models[3].calibration.dir",
            "has value 'nowhere'; there is no such folder; create it or correct the path",
        ),
    ]
    assert [(line, key) for line, key, _ in found] == [(line, key) for line, key, _ in expected]
    for (_, _, message), (_, _, start) in zip(found, expected, strict=True):
        assert message.startswith(start)
    assert err.splitlines()[0].startswith(f"{config}:4: models[1].arch has value 'resnet-18'; did you mean")
    code, out, _ = call(capsys, "check-config", str(config), "--skip-images", "--json")
    keys = [p["key"] for p in json.loads(out)["problems"]]
    assert (code, keys.count("models[1].calibration.dir")) == (78, 0)


def test_check_config_lists_the_first_mistakes_of_thousands(capsys, tmp_path):
    config = tmp_path / "edged.yaml"
    config.write_text("".join(f"key{number}: 1\n" for number in range(1250)))
    code, out, err = call(capsys, "check-config", str(config), "--json")
    found = json.loads(out)
    assert (code, len(found["problems"]), found["more"]) == (78, 100, 1151)
    assert len(out + err) < 100_000


def test_doctor_fails_when_something_fails(capsys, config, monkeypatch):
    quick = tuple(check for check in doctor.CHECKS if check is not doctor.check_packages)  # which takes seconds
    monkeypatch.setattr(doctor, "CHECKS", quick)
    code, out, _ = call(capsys, "doctor", "--config", config, "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    assert "fail" in {check["level"] for check in found["checks"]}
    code, out, _ = call(capsys, "doctor", "--config", config)
    assert code == 1
    assert "put at least 32 there" in out
    Path(config).write_text("modles: []\n")
    assert call(capsys, "doctor", "--config", config)[0] == 78


def test_doctor_prints_each_check_as_soon_as_it_is_done(capsys, config, monkeypatch):
    printed = []

    def second(machine, config):
        printed.append(capsys.readouterr().out)
        yield doctor.Check("second", doctor.OK, "fine")

    first = doctor.Check("first", doctor.WARN, "slow", "wait")
    monkeypatch.setattr(doctor, "CHECKS", (lambda machine, config: iter([first]), second))
    for json_only in ((), ("--json",)):
        code, out, _ = call(capsys, "doctor", "--config", config, *json_only)
        assert code == 0
        assert ("second" in out) != ("first" in out) or json_only
    in_time, in_json = printed
    assert in_time.endswith("warn  first: slow\n      -> wait\n")
    assert in_json == ""


def test_commands_that_compute_become_another_process(monkeypatch):
    became = []
    monkeypatch.setattr(os, "execve", lambda *args: became.append(args) or sys.exit(0))
    for arguments, threads in (
        (["quantize", "a.pth", "--calib", "images", "--out", "out", "--threads", "3"], "3"),
        (["evaluate", "a.pth", "--data", "images", "--threads=2"], "2"),
        (["calib", "images", "--threads", "0"], None),
        (["calib", "list"], None),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        path, command, environment = became.pop()
        assert (path, command) == (sys.executable, [sys.executable, "-m", "service.cli", *arguments])
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert environment["OMP_NUM_THREADS"] == (threads or str(len(os.sched_getaffinity(0))))


def test_no_traceback_reaches_a_user(capsys, daemon, monkeypatch):
    daemon.answer("GET /edged/v1/status", {"nothing": "expected"})
    monkeypatch.delenv("EDGED_DEBUG", raising=False)
    code, out, err = call(capsys, "status", "m", "--json")
    assert (code, json.loads(out)["code"]) == (1, "internal")
    assert err.startswith("edged: unexpected KeyError: 'models'; please report it")
    assert err.count("\n") == 1
    monkeypatch.setenv("EDGED_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["status", "m"])


def test_interrupting_is_one_line_and_130(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("service.cli.commands.find_config", interrupt)
    assert call(capsys, "run") == (130, "", "edged: interrupted\n")
