"""`edged run`: puts the parts together and runs them until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
import socket
import sys
from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry

from edged.errors import EdgedError
from service import logs
from service.access import LocalOnly
from service.config import Config, load_config
from service.http import create_app
from service.http_server import make_server
from service.listen import address_of, listen_tcp, listen_unix, lock_state
from service.metrics import Metrics
from service.notify import sd_notify, watchdog_interval_s
from service.paths import Paths
from service.supervisor import Supervisor

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8  # of <malloc.h>


def run(config_path: Path) -> int:
    """Run the daemon; returns its exit code."""
    _share_one_heap()
    try:
        config = load_config(config_path)
        _configure_logs(config)
        asyncio.run(_live(config_path, config))
    except EdgedError as error:
        sys.stderr.write(f"edged: {error}\n")
        return error.exit_code
    return 0


async def _live(config_path: Path, config: Config) -> None:
    """Take the locks and ports, serve, work, and leave in the reverse order."""
    paths = Paths(config.state_dir)
    paths.make()
    with contextlib.ExitStack() as held:
        held.enter_context(lock_state(paths.lock))
        tcp = held.enter_context(listen_tcp(config.serve.host, config.serve.port))
        unix = held.enter_context(listen_unix(config.socket))
        held.callback(config.socket.unlink, missing_ok=True)
        metrics = Metrics(CollectorRegistry(), version("edged"), config.state_dir)
        supervisor = await Supervisor.open(config, metrics, address_of(tcp))
        daemon = _Daemon(config_path, supervisor)
        await daemon.run(tcp, unix)
    log.info("stopped")


class _Daemon:
    """The supervisor with its servers and signals."""

    def __init__(self, config_path: Path, supervisor: Supervisor) -> None:
        self._config_path = config_path
        self._supervisor = supervisor
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, tcp: socket.socket, unix: socket.socket) -> None:
        """Serve until SIGTERM or SIGINT."""
        app = create_app(self._supervisor)
        servers = [make_server(app), make_server(LocalOnly(app))]
        serving = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for server, listener in zip(servers, (tcp, unix), strict=True)
        ]
        self._handle_signals()
        self._supervisor.metrics.config_reload_success.set(1)
        try:
            log.info("listening on %s", self._supervisor.address)
            await self._supervisor.start()
            sd_notify("READY=1\nSTATUS=ready")
            self._begin(self._watchdog())
            log.info("ready")
            await self._stop.wait()
        finally:
            sd_notify("STOPPING=1")
            log.info("stopping: no new requests, those begun are answered")
            self._supervisor.begin_stop()
            for server in servers:
                server.should_exit = True
            await asyncio.gather(*serving)
            await self._supervisor.stop()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self._reload()))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        """Take over a changed config file; keep the old one if the new one is wrong."""
        async with self._reloading:
            try:
                config = load_config(self._config_path)
                needs_restart = await self._supervisor.reload(config)
            except EdgedError as error:
                log.error("config not reloaded, the old one stays in force: %s", error)
                self._supervisor.metrics.config_reload_success.set(0)
                return
            self._supervisor.metrics.config_reload_success.set(1)
            _configure_logs(config)
            for key in needs_restart:
                log.warning("config reloaded, but %s only changes with a restart", key)
            log.info("config reloaded from %s", self._config_path)

    async def _watchdog(self) -> None:
        interval_s = watchdog_interval_s()
        while interval_s is not None:
            sd_notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)


def _share_one_heap() -> None:
    """Have all threads of this process allocate from one heap: glibc's heap a thread costs 2 MB of 40, measured."""
    with contextlib.suppress(AttributeError):  # a C library without mallopt has no such heaps either
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _configure_logs(config: Config) -> None:
    logs.configure(config.log.format, config.log.level)
    if config.log.level != "debug":  # it tells of every server and connection
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
