"""`edged run`: wires the parts together and runs them until a signal stops the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, disable_created_metrics

from edged.errors import ConfigError, EdgedError
from edged.version import __version__
from service.config.load import Config, load_config
from service.config.sections import ServeConfig
from service.daemon.environment import Environment
from service.daemon.supervisor import Supervisor
from service.http.auth import LocalOnly
from service.http.connections import SPARES, Connections
from service.http.hosts import AllowedHosts
from service.http.inference_route import InferenceRoute
from service.http.refusals import Refusals
from service.http.routes import create_app
from service.http.server import Server, make_server
from service.metrics.registry import Metrics
from service.storage.paths import Paths
from service.storage.state_lock import lock_state
from service.system import logs
from service.system.descriptors import allow_descriptors
from service.system.liveness import Liveness
from service.system.log_ring import LogRing
from service.system.sockets import (
    Inherited,
    address_of,
    inherited_sockets,
    is_loopback,
    listen_tcp,
    listen_unix,
)
from service.system.systemd import StatusLine, reloading, sd_notify, watchdog_interval_s
from service.system.watchdog import beat

if TYPE_CHECKING:
    from service.grpc.server import GrpcServer

log = logging.getLogger(__name__)

_LOCAL_CONNECTIONS = 64  # of the UNIX socket, whatever comes by TCP
_LEAST_CONNECTIONS = 8
# File descriptors that are not for connections: journal, files, watches, uploads, child processes.
_OTHER_DESCRIPTORS, _MODEL_DESCRIPTORS = 128, 16
_M_ARENA_MAX = -8  # of <malloc.h>
# Longest time for which a thread that computes keeps the interpreter from the event loop, each time that the loop has
# read or written. Python's 5 ms let a report that is rendered in the disk thread hold up a request for 30 ms.
_SWITCH_S = 2e-4
_PROBES_PER_BEAT = 2  # a late answer to a probe must leave time for the beat
_UMASK = (
    0o027  # of this process and its children: caches, warm-up images and reports may contain images that clients sent
)


def run(config_path: Path) -> int:
    """Run the daemon; returns its exit code."""
    os.umask(os.umask(_UMASK) | _UMASK)
    _share_one_heap()
    sys.setswitchinterval(_SWITCH_S)
    faulthandler.enable()  # logs where every thread is when the watchdog ends the process
    try:
        config, ring = load_config(config_path), LogRing(logs.MessageFormatter())
        _configure_logs(config, ring)
        asyncio.run(_live(config_path, config, ring))
    except EdgedError as error:
        sys.stderr.write(f"edged: {error}\n")
        return error.exit_code
    return 0


async def _live(config_path: Path, config: Config, ring: LogRing) -> None:
    """Take the locks and ports, run the daemon, and release them in the reverse order."""
    paths = Paths(config.state_dir)
    paths.make()
    with contextlib.ExitStack() as held:
        held.enter_context(lock_state(paths.lock))
        listeners = _open_listeners(config, inherited_sockets(), held)
        # Otherwise each counter has a second series with its time of creation. The function has no types.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        metrics = Metrics(CollectorRegistry(), __version__, config.state_dir)
        interval_s, status = watchdog_interval_s(), StatusLine()
        liveness = Liveness(math.inf if interval_s is None else interval_s)
        environment = Environment(address_of(listeners.tcp[0]), liveness, status.report, ring)
        _log_what_starts(config_path, config, environment.address)
        supervisor = await Supervisor.open(config, metrics, environment)
        daemon = _Daemon(config_path, supervisor, status)
        if interval_s is not None:
            from service.client import DaemonClient  # only a watchdog asks; a quarter of a megabyte

            client = DaemonClient(str(config.socket), interval_s / _PROBES_PER_BEAT)
            daemon.heart = asyncio.create_task(beat(liveness, client.is_live, interval_s, status))
        await daemon.run(listeners)
    log.info("stopped")


@dataclass
class _Listeners:
    """The sockets that accept requests.

    Attributes:
        tcp: TCP listeners, at least one.
        unix: UNIX listeners, at least one, each with a path.
        tcp_is_held: Whether the service manager holds the TCP listeners: early connections wait there.
    """

    tcp: list[socket.socket]
    unix: list[socket.socket]
    tcp_is_held: bool


def _open_listeners(config: Config, inherited: Inherited, held: contextlib.ExitStack) -> _Listeners:
    """Return the listeners that the service manager passes, and open those that it does not pass."""
    for listener in (*inherited.tcp, *inherited.unix):
        held.enter_context(listener)
    for listener in inherited.tcp:
        _check_public_listener(listener, config.serve)
    tcp = inherited.tcp or [held.enter_context(listen_tcp(config.serve.host, config.serve.port))]
    unix = list(inherited.unix)
    if str(config.socket) not in [listener.getsockname() for listener in unix]:
        unix.append(held.enter_context(listen_unix(config.socket)))
        held.callback(config.socket.unlink, missing_ok=True)
    return _Listeners(tcp, unix, tcp_is_held=bool(inherited.tcp))


def _check_public_listener(listener: socket.socket, serve: ServeConfig) -> None:
    """Refuse a public address without a token: the socket unit must not allow what the config may not.

    Raises:
        ConfigError: The listener is public, and neither a token nor serve.allow_public is set.
    """
    if is_loopback(listener) or serve.allow_public or serve.admin_token or serve.inference_token_file:
        return
    raise ConfigError(
        f"the socket unit listens on {address_of(listener)}, which other machines can reach, and there is no token;"
        " let it listen on 127.0.0.1, set serve.inference_token_file or serve.token_file, or serve.allow_public: true"
    )


class _Daemon:
    """The supervisor with its HTTP servers and signal handlers.

    Args:
        config_path: Config file, read again on SIGHUP.
        supervisor: Supervisor to run.
        status: Status line for the service manager.

    Attributes:
        heart: Task that feeds the watchdog until the stop; None without a watchdog.
    """

    def __init__(self, config_path: Path, supervisor: Supervisor, status: StatusLine) -> None:
        self._config_path = config_path
        self._supervisor = supervisor
        self._status = status
        self.heart: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: list[tuple[Server, asyncio.Task[None]]] = []
        self._grpc: GrpcServer | None = None

    async def run(self, listeners: _Listeners) -> None:
        """Serve until SIGTERM or SIGINT."""
        local_server, tcp_server = self._make_servers()
        self._serve(local_server, listeners.unix)
        if not listeners.tcp_is_held:
            self._serve(tcp_server, listeners.tcp)
        self._handle_signals()
        self._supervisor.metrics.config_reload_success.set(1)
        try:
            await self._serve_grpc()
            log.info("listening on %s%s", self._supervisor.address, self._grpc_note)
            async with self._reloading:  # a SIGHUP waits until then: it would reload a half-started daemon
                if not await self._start():
                    return
            _spare_collector()
            if listeners.tcp_is_held:  # early requests are answered by a model, not with 503
                self._serve(tcp_server, listeners.tcp)
            sd_notify("READY=1")
            self._status.report(self._supervisor.status_line())
            log.info("ready")
            await self._stop.wait()
        finally:
            sd_notify("STOPPING=1")
            if self.heart is not None:
                self.heart.cancel()
            log.info("stopping: no new requests, those begun are answered")
            self._supervisor.begin_stop()
            self._status.report(self._supervisor.status_line())
            for server, _ in self._serving:
                server.should_exit = True
            ends = [serving for _, serving in self._serving]
            await asyncio.gather(*ends, *([] if self._grpc is None else [self._grpc.stop()]))
            await self._supervisor.stop()

    async def _start(self) -> bool:
        """Start the supervisor; returns false if a stop was requested first, even while a model loads."""
        starting, stop = asyncio.create_task(self._supervisor.start()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            return starting.done()
        finally:
            starting.cancel()
            stop.cancel()
            await asyncio.wait({starting, stop})

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    def _make_servers(self) -> tuple[Server, Server]:
        """Create the HTTP servers for the UNIX socket and for TCP."""
        supervisor = self._supervisor
        refusals = Refusals(supervisor.metrics.count_http_refusal)
        inference = InferenceRoute(supervisor, refusals)
        hosts = AllowedHosts(lambda: supervisor.config.serve)
        app = create_app(supervisor, inference, hosts, refusals)

        def connections(limit: int) -> Connections:
            return Connections(
                limit, lambda: supervisor.config.serve, refusals, lambda: supervisor.body_memory.is_short
            )

        local, tcp = connections(_LOCAL_CONNECTIONS), connections(self._most_connections())
        supervisor.metrics.show_http({"tcp": tcp.__len__, "unix": local.__len__}, lambda: supervisor.body_memory.used)
        return (
            make_server(LocalOnly(app), local, partial(inference.admit, local=True)),
            make_server(app, tcp, partial(inference.admit, local=False), hosts),
        )

    def _serve(self, server: Server, listeners: list[socket.socket]) -> None:
        self._serving.append((server, asyncio.create_task(server.serve(sockets=listeners))))

    async def _serve_grpc(self) -> None:
        """Serve gRPC if it is configured; its library is imported only then."""
        if self._supervisor.config.serve.grpc_port is None:
            return
        from service.grpc.server import GrpcServer

        server = GrpcServer(self._supervisor, self._most_connections())
        await server.start()
        self._grpc, self._supervisor.grpc_address = server, server.address

    @property
    def _grpc_note(self) -> str:
        return "" if self._grpc is None else f", gRPC on {self._grpc.address}"

    def _most_connections(self) -> int:
        """Return how many TCP connections may be open: as configured, or as many as the descriptors suffice for.

        HTTP may have as many, and gRPC.
        """
        config = self._supervisor.config
        wanted, ports = config.serve.max_connections, 1 if config.serve.grpc_port is None else 2
        others = _OTHER_DESCRIPTORS + _MODEL_DESCRIPTORS * len(config.models) + _LOCAL_CONNECTIONS + 2 * SPARES
        allowed = allow_descriptors(ports * wanted + others)
        most = max(_LEAST_CONNECTIONS, min(wanted, (allowed - others) // ports))
        if most < wanted:
            log.warning(
                "serve.max_connections is %d, but %d files may be open: at most %d connections; raise LimitNOFILE=",
                *(wanted, allowed, most),
            )
        return most

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self._reload()))

    async def _reload(self) -> None:
        """Apply a changed config file; keep the old configuration if the new one is invalid."""
        async with self._reloading:
            reloading()
            try:
                await self._apply_config()
                self._status.note = None
            except EdgedError as error:
                log.error("config not reloaded, the old one stays in force: %s", error)
                self._supervisor.metrics.config_reload_success.set(0)
                self._status.note = f"config not reloaded, the old one stays in force: {str(error).splitlines()[0]}"
            finally:
                sd_notify("READY=1")
                self._status.report(self._supervisor.status_line())

    async def _apply_config(self) -> None:
        config = load_config(self._config_path)
        needs_restart = await self._supervisor.reload(config)
        self._supervisor.metrics.config_reload_success.set(1)
        _configure_logs(config, self._supervisor.log_ring)
        for key in needs_restart:
            log.warning("config reloaded, but %s only changes with a restart", key)
        log.info("config reloaded from %s", self._config_path)


def _share_one_heap() -> None:
    """Have all threads of this process allocate from one heap: glibc's heap a thread costs 2 MB of 40, measured."""
    with contextlib.suppress(AttributeError):  # a C library without mallopt has no such heaps either
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _spare_collector() -> None:
    """Keep the garbage collector off what startup made: it stopped requests for 20 ms and more, mostly after a swap."""
    gc.collect()
    gc.freeze()


def _log_what_starts(config_path: Path, config: Config, address: str) -> None:
    """Log which daemon this is: the first line of its log."""
    log.info(
        "edged %s starts: config %s, models %s, state_dir %s, drop_dir %s, address %s, socket %s",
        __version__,
        config_path.absolute(),
        ", ".join(model.name for model in config.models),
        config.state_dir,
        config.drop_folder,
        address,
        config.socket,
    )


def _configure_logs(config: Config, ring: LogRing) -> None:
    logs.configure(config.log.format, config.log.level, ring=ring)
    if config.log.level != "debug":  # uvicorn logs every server and connection
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
