import json
import subprocess
import sys
import webbrowser

import pytest

from service.journal.states import State
from service.journal.store import Journal
from service.storage.paths import Paths
from tests.support.commands import call
from tests.support.fake_daemon import fake_daemon
from tests.support.reports import data_of

JSON_OF_7 = "GET /edged/v1/updates/7/report.json"


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with fake_daemon(tmp_path / "s") as script:
        monkeypatch.setenv("EDGED_SOCKET", str(tmp_path / "s"))
        script.answer(JSON_OF_7, data_of())
        yield script


def test_in_words(capsys, daemon):
    code, out, err = call(capsys, "report", "7")
    assert (code, err) == (0, "")
    assert out.startswith("update 7 of m: COMMITTED\n")
    assert out.endswith("page: /state/models/m/gen/3/report.html\n")


def test_the_latest_of_a_model(capsys, daemon):
    daemon.answer("GET /edged/v1/updates?model=m&limit=1", {"updates": [{"id": 7}]})
    for name in ("shlef", "n"):
        daemon.answer(f"GET /edged/v1/updates?model={name}&limit=1", {"updates": []})
    daemon.answer("GET /edged/v1/status", {"models": [{"name": "shelf"}, {"name": "n"}]})
    assert call(capsys, "report", "m")[0] == 0
    assert daemon.asked[-1] == JSON_OF_7
    code, _, err = call(capsys, "report", "n")
    assert (code, err) == (2, "edged: model 'n' has no updates yet; drop a checkpoint, see `edged status`\n")
    code, _, err = call(capsys, "report", "shlef")
    message = "no update 'shlef': neither a number nor a model; did you mean 'shelf'? configured: shelf, n"
    assert (code, err) == (2, f"edged: {message}\n")


def test_as_json_without_pictures(capsys, daemon):
    code, out, _ = call(capsys, "report", "7", "--json")
    found = json.loads(out)
    assert (code, found["update"]["id"], found["page"]) == (0, 7, None)
    assert found["predictions"]["images"][0]["picture"] is None


def test_as_a_file(capsys, daemon, tmp_path):
    target = tmp_path / "out.html"
    code, out, _ = call(capsys, "report", "7", "--output", str(target))
    assert (code, out.splitlines()[-1]) == (0, f"page: {target}")
    assert "data:image/png;base64," in target.read_text()
    code, _, err = call(capsys, "report", "7", "--output", str(tmp_path / "none" / "out.html"))
    assert (code, "choose another --output" in err) == (73, True)


def test_in_a_browser(capsys, daemon, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert call(capsys, "report", "7", "--open")[0] == 0  # the daemon's page cannot be read from here: it is made anew
    written = next(tmp_path.glob("edged-*/edged-report-7.html"))
    assert opened == [written.as_uri()]
    there = tmp_path / "report.html"
    there.write_text("as the daemon wrote it")
    daemon.answer(JSON_OF_7, data_of(path=str(there)))
    assert call(capsys, "report", "7", "--open")[0] == 0
    assert opened[-1] == there.as_uri()


def test_without_a_browser_the_page_can_be_taken_elsewhere(capsys, daemon, tmp_path, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    code, _, err = call(capsys, "report", "7", "--open", "--output", str(tmp_path / "r.html"))
    assert (code, err) == (69, f"edged: no browser here; copy {tmp_path / 'r.html'} to a machine that has one\n")


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The state folder of a daemon that does not run."""
    monkeypatch.delenv("EDGED_SOCKET", raising=False)
    (tmp_path / "images").mkdir()
    config = tmp_path / "edged.yaml"
    config.write_text("state_dir: state\nmodels: [{name: m, calibration: {dir: images}}]\n")
    paths = Paths(tmp_path / "state")
    paths.make()
    journal = Journal(paths.journal)
    update = journal.create("m", "a.pt", 5)
    journal.advance(update.id, State.REJECTED, code="checkpoint", reason="the file is empty")
    yield config, paths
    journal.close()


def test_without_a_daemon_the_state_folder_is_read_and_left_as_it_is(capsys, stopped):
    config, paths = stopped
    before = {path.name: path.stat().st_mtime_ns for path in paths.root.iterdir()}
    for asked in ("1", "m"):
        code, out, _ = call(capsys, "report", asked, "--config", str(config))
        assert code == 0
        assert out.startswith("update 1 of m: REJECTED\n  a.pt\n  checkpoint: the file is empty\n")
    assert {path.name: path.stat().st_mtime_ns for path in paths.root.iterdir()} == before
    assert call(capsys, "report", "2", "--config", str(config))[0] == 2
    assert call(capsys, "report", "n", "--config", str(config))[0] == 2


def test_no_daemon_and_no_journal(capsys, stopped, tmp_path):
    config, paths = stopped
    paths.journal.rename(paths.root / "elsewhere")
    code, _, err = call(capsys, "report", "1", "--config", str(config))
    assert (code, "journal.db cannot be read" in err) == (69, True)
    assert call(capsys, "report", "1", "--socket", str(tmp_path / "none"))[0] == 69
    assert call(capsys, "report", "1", "--config", str(tmp_path / "none.yaml"))[0] == 78


def test_nothing_heavy_is_imported():
    code = "import service.cli.report, service.reporting.page, service.reporting.text, sys; "
    code += "sys.exit(bool({'torch', 'numpy', 'PIL', 'asyncio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
