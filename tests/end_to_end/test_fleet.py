"""docs/fleet.md, with the programs that it names: rsync, Syncthing, a registry and skopeo, Mender."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.daemon import Daemon, eventually, running
from tests.support.repository import ROOT
from tests.support.signing import Signer
from tests.support.tasks import Task

MODULE = ROOT / "configs" / "fleet" / "mender" / "edged-checkpoint"
PULL = ROOT / "configs" / "fleet" / "oci" / "edged-pull"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("daemon"), task.calibration) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def environment(daemon: Daemon) -> dict[str, str]:
    """Of a device on which `edged` is a command that finds the daemon."""
    command = daemon.folder / "edged"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m service.cli.main "$@"\n')
    command.chmod(0o755)
    python = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "EDGED": str(command), "EDGED_SOCKET": str(daemon.state / "edged.sock"), "PYTHONPATH": python}


@pytest.fixture
def settled(daemon: Daemon, task: Task) -> Daemon:
    """`task.first` is live, whatever the test before has done."""
    daemon.put_live(task.first, f"{len(daemon.updates())}.pt")
    return daemon


@pytest.fixture
def fresh(task: Task, tmp_path: Path) -> Path:
    """A checkpoint that the daemon does not know: one that was rolled back is not taken again."""
    state = torch.load(task.second, weights_only=True)
    state["linear.bias"] += torch.rand(()) / 100
    torch.save(state, tmp_path / "best.pt")
    return tmp_path / "best.pt"


class Deployment:
    """The folder that Mender gives to an update module, and its calls."""

    def __init__(self, folder: Path, environment: dict[str, str], file: Path, *more: Path, **meta_data: object) -> None:
        self.folder = folder
        self.environment = environment
        for name in ("header", "files", "tmp"):
            (folder / name).mkdir(parents=True)
        (folder / "header" / "meta-data").write_text(json.dumps(meta_data))
        for each in (file, *more):
            shutil.copy(each, folder / "files")

    def call(self, state: str) -> subprocess.CompletedProcess[str]:
        command = [str(MODULE), state, str(self.folder)]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def run(self, *states: str) -> None:
        for state in states:
            done = self.call(state)
            assert done.returncode == 0, done.stderr


def test_an_update_module_installs_and_commits(
    settled: Daemon, fresh: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    before = settled.generation()
    deployment = Deployment(tmp_path / "deployment", environment, fresh, model="digits")
    assert deployment.call("SupportsRollback").stdout == "Yes\n"
    assert deployment.call("NeedsArtifactReboot").stdout == "No\n"
    deployment.run("Download", "ArtifactInstall", "ArtifactCommit", "Cleanup", "SomethingOfALaterProtocol")
    assert settled.generation() != before


@pytest.mark.slow
def test_an_update_module_rolls_back_what_it_installed_and_nothing_else(
    settled: Daemon, fresh: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    before = settled.generation()
    deployment = Deployment(tmp_path / "deployment", environment, fresh, model="digits")
    deployment.run("ArtifactInstall", "ArtifactRollback")
    assert settled.generation() == before
    deployment.run("ArtifactRollback")  # a second time: the one before is back already
    assert settled.generation() == before
    committed = deployment.call("ArtifactCommit")
    assert committed.returncode == 1
    assert f"serves generation {before}, not" in committed.stderr


@pytest.mark.slow
def test_the_same_file_deployed_once_more_does_not_go_back_behind_the_start(
    settled: Daemon, fresh: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    before = settled.generation()
    Deployment(tmp_path / "first", environment, fresh, model="digits").run("ArtifactInstall", "ArtifactCommit")
    generation = settled.generation()
    assert generation != before
    again = Deployment(tmp_path / "again", environment, fresh, model="digits")
    again.run("ArtifactInstall", "ArtifactRollback")  # it was live already, so nothing of it is to be undone
    assert settled.generation() == generation


@pytest.mark.slow
def test_a_reboot_in_the_middle_of_an_installation(
    settled: Daemon, fresh: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The module ends before it hears what became of the file; the daemon goes on."""
    before = settled.generation()
    deployment = Deployment(tmp_path / "deployment", environment, fresh, model="digits")
    command = deployment.folder / "edged"  # as if the power went while it waits
    command.write_text(f'#!/bin/sh\n{environment["EDGED"]} "$@" || exit\n[ "$1" != submit ] || kill -9 $PPID\n')
    command.chmod(0o755)
    whole, deployment.environment = deployment.environment, {**environment, "EDGED": str(command)}
    assert deployment.call("ArtifactInstall").returncode == -signal.SIGKILL
    deployment.environment = whole
    assert settled.generation() != before
    committed = deployment.call("ArtifactCommit")
    assert (committed.returncode, "not a generation of this artifact" in committed.stderr) == (1, True)
    deployment.run("ArtifactRollback")
    assert settled.generation() == before
    deployment.run("ArtifactRollback")
    assert settled.generation() == before


def test_an_update_module_fails_with_the_reason(
    settled: Daemon, task: Task, environment: dict[str, str], tmp_path: Path
) -> None:
    before = settled.generation()
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    deployment = Deployment(tmp_path / "broken", environment, broken, model="digits")
    failed = deployment.call("ArtifactInstall")
    assert failed.returncode == 1
    assert "REJECTED" in failed.stderr
    deployment.run("ArtifactRollback", "ArtifactFailure", "Cleanup")  # nothing went live, so nothing goes back
    assert settled.generation() == before
    unknown = Deployment(tmp_path / "unknown", environment, task.first, model="shelf").call("Download")
    assert unknown.returncode == 1
    assert "edged has no model 'shelf'; configured: digits" in unknown.stderr
    without = Deployment(tmp_path / "without", environment, task.first).call("Download")
    assert without.returncode == 1
    assert 'meta-data must be like {"model": "shelf"}' in without.stderr


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("keys"), "release")


@pytest.fixture(scope="module")
def strict(task: Task, signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose model takes only signed checkpoints, of no older version."""
    model = {"name": "digits", "calibration": {"dir": str(task.calibration)}, "input": {"size": 8, "resize": 8}}
    model["trust"] = {"keys": [str(signer.public)], "refuse_downgrade": True}
    with running(tmp_path_factory.mktemp("strict"), task.calibration, models=[model]) as daemon:
        yield daemon


@pytest.mark.slow
@needs("rsync")
def test_rsync_delivers_a_signed_checkpoint(strict: Daemon, signer: Signer, fresh: Path) -> None:
    signer.write(fresh, "digits", 1)
    files = [str(fresh), f"{fresh}.sig"]
    subprocess.run(["rsync", "--archive", "--delay-updates", *files, f"{strict.state}/drop/digits/"], check=True)
    assert strict.update_of("best.pt", "COMMITTED")["signature"]["version"] == 1


@pytest.mark.slow
def test_an_update_module_installs_a_signed_checkpoint(
    strict: Daemon, signer: Signer, fresh: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    environment = {**environment, "EDGED_SOCKET": str(strict.state / "edged.sock")}
    unsigned = Deployment(tmp_path / "unsigned", environment, fresh, model="digits").call("ArtifactInstall")
    assert unsigned.returncode == 1
    assert "exited with code 3" in unsigned.stderr
    signature = signer.write(fresh, "digits", 2)
    Deployment(tmp_path / "signed", environment, fresh, signature, model="digits").run(
        "ArtifactInstall", "ArtifactCommit"
    )
    assert strict.updates()[0]["signature"]["version"] == 2
    other = tmp_path / "other.sig"
    shutil.copy(signature, other)
    failed = Deployment(tmp_path / "other", environment, fresh, other, model="digits").call("ArtifactInstall")
    assert "the artifact has the files best.pt, other.sig" in failed.stderr


@needs("rsync")
def test_rsync_delivers(settled: Daemon, fresh: Path) -> None:
    weekly = fresh.rename(fresh.with_name("weekly.pt"))
    subprocess.run(["rsync", "--archive", "--delay-updates", str(weekly), f"{settled.state}/drop/digits/"], check=True)
    update = settled.update_of("weekly.pt")
    assert update["state"] == "COMMITTED"
    assert settled.generation() == update["generation"]


@pytest.mark.slow
@needs("mender", "mender-artifact", "unshare", "mount")
@pytest.mark.skipif(os.geteuid() != 0, reason="Mender's folder of modules can be replaced for a test by root only")
def test_mender_deploys_commits_and_rolls_back(
    settled: Daemon, fresh: Path, task: Task, environment: dict[str, str], tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("modules", "etc", "data")}
    for folder in folders.values():
        folder.mkdir()
    shutil.copy(MODULE, folders["modules"])
    (folders["data"] / "device_type").write_text("device_type=jetson-orin\n")
    (folders["etc"] / "artifact_info").write_text("artifact_name=factory\n")
    (folders["etc"] / "mender.conf").write_text("{}")
    (tmp_path / "meta-data.json").write_text('{"model": "digits"}')

    def artifact(checkpoint: Path) -> str:
        file = tmp_path / f"{checkpoint.stem}.mender"
        command = ["mender-artifact", "write", "module-image", "--type", "edged-checkpoint"]
        command += ["--artifact-name", checkpoint.stem, "--device-type", "jetson-orin"]
        command += ["--meta-data", str(tmp_path / "meta-data.json"), "--file", str(checkpoint)]
        subprocess.run([*command, "--output-path", str(file)], check=True, capture_output=True)
        return str(file)

    def mender(*arguments: str) -> None:
        mounts = f"mount --bind {folders['modules']} /usr/share/mender/modules/v3 && "
        mounts += f"mount --bind {folders['etc']} /etc/mender && "
        command = ["unshare", "--mount", "sh", "-c", mounts + 'exec mender "$@"', "sh", "--no-syslog"]
        command += ["--data", str(folders["data"]), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    before = settled.generation()
    mender("install", artifact(fresh))
    assert settled.generation() not in (before, None)
    mender("rollback")
    assert settled.generation() == before
    mender("install", artifact(task.second))
    mender("commit")
    assert settled.generation() != before


def push(layout: Path, checkpoint: Path, *more: Path) -> None:
    """Write an artifact as `oras push` makes it, into an OCI image layout, under the tag stable."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(contents: bytes, kind: str, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(contents).hexdigest()
        (blobs / digest).write_bytes(contents)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(contents), **more}

    kind = "application/vnd.edged.checkpoint"
    titles = [(checkpoint, "best.pt"), *((path, path.name) for path in more)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": kind,
        "config": blob(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [
            blob(path.read_bytes(), kind, annotations={"org.opencontainers.image.title": title})
            for path, title in titles
        ],
    }
    tag = {"org.opencontainers.image.ref.name": "stable"}
    index = {"manifests": [blob(json.dumps(manifest).encode(), str(manifest["mediaType"]), annotations=tag)]}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, **index}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def program(command: list[str], log: Path) -> Iterator[None]:
    """A program that runs until the end of the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Registry:
    """A registry with one tag, and the device that pulls from it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.port = folder, free_port()
        self.reference = f"127.0.0.1:{self.port}/models/digits:stable"
        self.environment = {**environment, "STATE_DIRECTORY": str(folder / "pulled")}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        storage = {"filesystem": {"rootdirectory": str(self.folder / "registry")}}
        settings = self.folder / "registry.yml"
        settings.write_text(
            json.dumps({"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{self.port}"}})
        )
        with program(["docker-registry", "serve", str(settings)], self.folder / "registry.log"):
            eventually(lambda: answers(self.port), "registry", 30)
            yield

    def publish(self, checkpoint: Path, *more: Path) -> None:
        push(self.folder / "layout", checkpoint, *more)
        source, target = f"oci:{self.folder}/layout:stable", f"docker://{self.reference}"
        subprocess.run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, target], check=True)

    def pull(self) -> int:
        command = [str(PULL), self.reference, "digits", "--src-tls-verify=false"]
        return subprocess.run(command, env=self.environment).returncode


@pytest.mark.slow
@needs("skopeo", "docker-registry")
def test_a_registry_keeps_signed_checkpoints(
    strict: Daemon, signer: Signer, fresh: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    registry = Registry(tmp_path, {**environment, "EDGED_SOCKET": str(strict.state / "edged.sock")})
    with registry.running():
        registry.publish(fresh, signer.write(fresh, "digits", 3))
        assert registry.pull() == 0
        assert strict.updates()[0]["signature"]["version"] == 3
        registry.publish(fresh, signer.write(fresh, "digits", 1))
        assert registry.pull() == 3
        assert strict.updates()[0]["code"] == "downgrade"
        registry.publish(fresh)
        assert registry.pull() == 3


@pytest.mark.slow
@needs("skopeo", "docker-registry")
def test_a_registry_keeps_checkpoints(
    settled: Daemon, fresh: Path, task: Task, environment: dict[str, str], tmp_path: Path
) -> None:
    registry = Registry(tmp_path, environment)
    publish, pull = registry.publish, registry.pull
    assert pull() == 69  # nobody answers yet
    with registry.running():
        before = settled.generation()
        publish(fresh)
        assert pull() == 0
        generation = settled.generation()
        assert generation != before
        updates = len(settled.updates())
        assert pull() == 0  # the same digest: nothing to do
        assert len(settled.updates()) == updates
        publish(task.first)  # the tag goes back
        assert pull() == 0
        assert settled.generation() == before
        broken = tmp_path / "broken.pt"
        broken.write_bytes(b"not a checkpoint either")
        publish(broken)
        assert [pull(), pull()] == [3, 0]  # told once, not tried again
        assert settled.generation() == before


@pytest.mark.slow
@needs("syncthing")
def test_syncthing_delivers_and_takes_nothing_away(settled: Daemon, fresh: Path, task: Task, tmp_path: Path) -> None:
    drop = settled.state / "drop" / "digits"
    with syncing(tmp_path, drop) as source:
        for checkpoint in (fresh, task.first):  # the second one under the name of the first
            shutil.copy(checkpoint, tmp_path / "new")
            (tmp_path / "new").rename(source / "best.pt")
            digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
            eventually(lambda digest=digest: committed(settled, digest), "the checkpoint is live")  # type: ignore[misc]
            eventually(lambda: not (drop / "best.pt").exists(), "taken out of the drop folder")
        assert (source / "best.pt").read_bytes() == task.first.read_bytes()


@pytest.mark.slow
@needs("syncthing")
def test_syncthing_delivers_signed_checkpoints_under_one_name(
    strict: Daemon, signer: Signer, fresh: Path, task: Task, tmp_path: Path
) -> None:
    drop = strict.state / "drop" / "digits"
    with syncing(tmp_path, drop) as source:
        for version, checkpoint in ((10, fresh), (11, task.first)):
            shutil.copy(checkpoint, tmp_path / "new")
            signer.write(tmp_path / "new", "digits", version).rename(source / "best.pt.sig")
            (tmp_path / "new").rename(source / "best.pt")
            digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
            eventually(lambda digest=digest: committed(strict, digest), "the checkpoint is live")  # type: ignore[misc]
            assert strict.updates()[0]["signature"]["version"] == version
            eventually(lambda: not list(drop.glob("best.pt*")), "both are taken out of the drop folder")


@contextlib.contextmanager
def syncing(folder: Path, drop: Path) -> Iterator[Path]:
    """Synchronize a drop folder with the folder of a server, which is yielded."""
    source = folder / "source"
    source.mkdir()
    homes = {"device": (folder / "device", drop, "receiveonly"), "server": (folder / "server", source, "sendonly")}
    ports = {name: free_port() for name in homes}
    configure_syncthing(homes, ports)
    with contextlib.ExitStack() as stack:
        for name, (home, _, _) in homes.items():
            command = ["syncthing", "serve", f"--home={home}", "--no-browser", "--no-restart"]
            stack.enter_context(program(command, folder / f"{name}.log"))
        yield source


def committed(daemon: Daemon, digest: str) -> bool:
    newest = daemon.updates()[0]
    return (newest["file_name"], newest["sha256"], newest["state"]) == ("best.pt", digest, "COMMITTED")


def configure_syncthing(homes: dict[str, tuple[Path, Path, str]], ports: dict[str, int]) -> None:
    """Two devices that know each other by address, on loopback and without any service outside."""
    trees = {}
    for name, (home, _, _) in homes.items():
        command = ["syncthing", "generate", f"--home={home}", "--no-default-folder", "--skip-port-probing"]
        subprocess.run(command, check=True, capture_output=True)
        trees[name] = ElementTree.parse(home / "config.xml")  # noqa: S314 - Syncthing wrote it just now
    identities = {name: tree.getroot().find("device").get("id", "") for name, tree in trees.items()}  # type: ignore[union-attr]
    for name, tree in trees.items():
        home, shared, kind = homes[name]
        root = tree.getroot()
        options = root.find("options")
        assert options is not None
        settings = {
            "listenAddress": f"tcp://127.0.0.1:{ports[name]}",
            "reconnectionIntervalS": "1",
            "autoUpgradeIntervalH": "0",
            "urAccepted": "-1",
        }
        for key in ("globalAnnounceEnabled", "localAnnounceEnabled", "relaysEnabled", "natEnabled"):
            settings[key] = "false"
        settings["crashReportingEnabled"] = settings["startBrowser"] = "false"
        for key, value in settings.items():
            for old in options.findall(key):
                options.remove(old)
            ElementTree.SubElement(options, key).text = value
        root.find("gui").set("enabled", "false")  # type: ignore[union-attr]
        (other,) = set(homes) - {name}
        peer = ElementTree.SubElement(root, "device", id=identities[other], name=other)
        ElementTree.SubElement(peer, "address").text = f"tcp://127.0.0.1:{ports[other]}"
        folder = ElementTree.SubElement(
            root, "folder", id="digits", path=str(shared), type=kind, rescanIntervalS="2", fsWatcherEnabled="false"
        )
        for identity in identities.values():
            ElementTree.SubElement(folder, "device", id=identity)
        tree.write(home / "config.xml")
