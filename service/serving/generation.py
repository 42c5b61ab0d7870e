"""The supervisor's side of a generation: start its process, send it requests, drain it, stop it.

Imports no torch. Requests are forwarded as raw bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.errors import ArtifactError, DeferredError, EdgedError, GateError
from service.ipc import frames
from service.ipc.frames import FrameError
from service.ipc.messages import Form, Reply
from service.ipc.options import Batching
from service.ipc.shared_memory import RequestBody
from service.serving.channel import Channel, ChannelOptions, Done, NotStartedError, Order, Question
from service.serving.fork_client import ForkError, ForkServer
from service.serving.forked_process import Forked
from service.serving.limits import GenerationOptions
from service.system.log_flood import OUTPUT
from service.system.oom_kills import OomKills
from service.system.processes import cores
from service.system.timeouts import within

log = logging.getLogger(__name__)
output = logging.getLogger(f"{__name__}.{OUTPUT}")

_STOP_S = 5.0
_END_S = 1.0


class StartError(DeferredError):
    """The process of a generation cannot be started."""

    code = "generation_start"


class UnusableError(StartError):
    """The process of a generation cannot read its artifact, and could not repair it."""


@dataclass(frozen=True)
class GenerationEvents:
    """Receives the events of a generation; ignores them by default.

    Attributes:
        batched: Called with the number of images of each batch.
        exited: Called once with the generation when its process exits without having been stopped.
        observed: Called with the observation of a sampled request, see service.inference.observation.
    """

    batched: Callable[[int], None] = lambda _: None
    exited: Callable[[Generation], None] = lambda _: None
    observed: Callable[[dict[str, Any]], None] = lambda _: None


class Generation:
    """One child process that serves one published artifact.

    Args:
        model: Model name.
        number: Generation number.
        directory: Folder of the artifact.
        fork_server: Forks the process.
        options: Options of the process and its queue.
        events: Receives what happens to it.

    Attributes:
        metadata: Description of the model, as the protocol has it.
        artifact: What it serves: "file_name" of the checkpoint, "bits" of the weights, and "activation_bits", None if
            activations are floats. Empty before it was started.
        serving: Whether requests can be sent.
        answered: Whether it has answered a request since its start.
        start_seconds: Seconds that it took to start, load and warm up.
        warmup: How close its outputs for the warm-up images are to those of the network that was evaluated:
            "identical", "relative_error", "outputs_sha256", "recorded_sha256"; None if its artifact has no such images.
    """

    def __init__(
        self,
        model: str,
        number: int,
        directory: Path,
        fork_server: ForkServer,
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - frozen
        events: GenerationEvents = GenerationEvents(),
    ) -> None:
        self.model = model
        self.number = number
        self.metadata: dict[str, Any] = {}
        self.artifact: dict[str, Any] = {}
        self.serving = False
        self.answered = False
        self.start_seconds = 0.0
        self.warmup: dict[str, Any] | None = None
        self._directory = directory
        self._fork_server = fork_server
        self._options = options
        self._events = events
        self._process: Forked | None = None
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._killed = False  # by this program
        self._kills = OomKills(None, None)  # as they were when its process was started

    @property
    def pid(self) -> int | None:
        """Process id of the child; None before it was started."""
        return None if self._process is None else self._process.pid

    @property
    def engine(self) -> str:
        """Name of the engine that computes the model; "" before it was started."""
        return str(self.metadata.get("platform", "")).removeprefix("edged_")

    @property
    def batching(self) -> Batching:
        """How it gathers requests into batches."""
        return self._options.batching

    @property
    def threads(self) -> int:
        """Number of threads that it computes with."""
        return self._options.threads or cores()

    @property
    def inflight(self) -> int:
        """Number of requests without a reply."""
        return 0 if self._channel is None else self._channel.inflight

    @property
    def stalled_s(self) -> float:
        """How long the child has been silent while a request is with it."""
        return 0.0 if self._channel is None else self._channel.stalled_s

    async def start(self, timeout_s: float) -> None:
        """Start the process and wait until it has loaded the model and run it.

        Raises:
            GateError: The model's outputs are not finite, or not those that were evaluated.
            UnusableError: Its artifact is damaged, or this version of edged does not read it.
            StartError: The process cannot be started, exited, or was not ready in time.
        """
        began = time.monotonic()
        try:
            channel = self._channel = await self._spawn(timeout_s)
            header = await within(timeout_s - (time.monotonic() - began), channel.receive())
            if header is None:
                raise StartError(
                    f"generation {self.number} ended while it was starting{await self._why()}; see the log"
                )
            self._check_ready(header)
        except BaseException as error:
            await self.stop()
            if isinstance(error, asyncio.TimeoutError):
                raise StartError(f"generation {self.number} was not ready after {timeout_s:g} s") from error
            if isinstance(error, (OSError, FrameError, ForkError)):
                raise StartError(f"generation {self.number} cannot be started: {error}") from error
            raise
        self.serving = True
        self.start_seconds = time.monotonic() - began
        log.info(
            "model %s generation %d is up after %.2f s; %s", *self._named, self.start_seconds, self._output_match()
        )
        self._tasks.append(asyncio.create_task(self._pump(channel)))

    async def infer(
        self,
        body: RequestBody,
        deadline_s: float,
        json_bytes: int | None = None,
        *,
        rival: Reply | None = None,
        observe: Order | None = None,
        alone: bool = False,
        form: Form | None = None,
    ) -> Reply:
        """Have the child answer one request; the arguments are those of `Channel.request`.

        Raises:
            NotStartedError: The child is not ready, or exited before it started the request.
            ServingError: The child is too busy, too slow, or it exited.
        """
        reply = await self._channel_in_service().request(
            body, deadline_s, json_bytes, rival=rival, observe=observe, alone=alone, form=form
        )
        self.answered = True
        return reply

    def begin(self, question: Question, deadline_s: float, done: Done) -> None:
        """Have the child answer one request without a task; the arguments are those of `Channel.begin`.

        Raises:
            BusyError, NotStartedError: The child takes no request; `done` is not called then.
        """
        self._channel_in_service().begin(question, deadline_s, done)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every request is answered; False if that takes longer than `timeout_s`."""
        return self._channel is None or await self._channel.drain(timeout_s)

    async def stop(self) -> None:
        """Stop the process; unanswered requests get a ServingError."""
        self._stopping = True
        self.serving = False
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            try:
                await within(_STOP_S, self._process.wait())
            except asyncio.TimeoutError:
                log.warning("model %s generation %d does not end by itself; killed", self.model, self.number)
            finally:
                self.kill()
            await self._process.wait()
        if self._tasks:  # both read to the end of their streams; one has the last output of the child
            await asyncio.wait(self._tasks, timeout=_END_S)
        for task in self._tasks:
            task.cancel()

    def kill(self) -> None:
        """Kill the process; unless `stop` was called, this counts as an unexpected exit."""
        if self._process is not None:
            self._killed = self._killed or self._process.returncode is None
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def ended(self) -> str:
        """Wait for the end of the process, and describe it."""
        assert self._process is not None  # noqa: S101 - only a process that was started can end
        code = await self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        how = f"killed by signal {-code} ({signal.strsignal(-code)})"
        if code != -signal.SIGKILL or self._killed:
            return how
        return f"{how}; {OomKills.read().since(self._kills).cause}"

    def _channel_in_service(self) -> Channel:
        if self._channel is None or not self.serving:
            raise NotStartedError(f"model {self.model!r} is starting; try again in some seconds")
        return self._channel

    @property
    def _named(self) -> tuple[str, int]:
        return self.model, self.number

    def _output_match(self) -> str:
        if self.warmup is None:
            return "its artifact has no images to compare it by"
        if self.warmup["identical"]:
            return "its outputs are bit-identical to the evaluated ones"
        return f"its outputs differ from those that were evaluated by {self.warmup['relative_error']:.2g} of their norm"

    async def _spawn(self, timeout_s: float) -> Channel:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._kills = OomKills.read()
                started = self._fork_server.memory.send_to(ours)
                self._process = await self._fork_server.fork(self._arguments(), theirs, timeout_s)
            except BaseException:
                ours.close()
                raise
        self._tasks.append(asyncio.create_task(self._read_log(self._process)))
        options = ChannelOptions(
            self._options.queue, self._options.batching.max_batch, self._events.batched, self._events.observed
        )
        channel = Channel(self.model, options, self._fork_server.memory, started)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        if self._options.labels is not None:
            names = json.dumps(self._options.labels).encode()
            transport.write(frames.head({"kind": "labels"}, names) + names)
        return channel

    def _arguments(self) -> list[str]:
        """Return the arguments of service.inference.main; what identifies it comes first, as `ps` may cut the rest."""
        options, batching = self._options, self._options.batching
        return [
            *("--generation", str(self.number), "--model", self.model, "--artifact", str(self._directory)),
            *("--parent", str(os.getpid()), "--threads", str(self.threads), "--runtime", options.runtime),
            *("--device", options.device, "--providers", *options.providers),
            *(() if options.engine_cache is None else ("--engine-cache", str(options.engine_cache))),
            *(("--beside",) if options.background else ()),
            *(("--labels",) if options.labels is not None else ()),
            *("--max-batch", str(batching.max_batch), "--max-delay-s", str(batching.max_delay_s)),
        ]

    async def _why(self) -> str:
        """Describe how the process ended, if it has ended by now."""
        with contextlib.suppress(asyncio.TimeoutError):
            return f": {await within(_END_S, self.ended())}"
        return ""

    def _check_ready(self, header: dict[str, Any]) -> None:
        if header["kind"] == "failed":
            kinds: dict[str, type[EdgedError]] = {GateError.code: GateError, ArtifactError.code: UnusableError}
            raise kinds.get(header["code"], StartError)(header["message"])
        self.metadata, self.artifact, self.warmup = header["metadata"], header["artifact"], header["warmup"]

    async def _pump(self, channel: Channel) -> None:
        try:
            await channel.pump()
        except (OSError, FrameError) as error:
            log.warning("model %s generation %d: connection lost: %s", self.model, self.number, error)
        finally:
            self.serving = False
            if not self._stopping:
                self._events.exited(self)
                await self._see_it_end()

    async def _see_it_end(self) -> None:
        """Wait for the process to exit, so that `ended` reports its own reason; kill it if it does not."""
        assert self._process is not None  # noqa: S101 - it has answered
        try:
            await within(_END_S, self._process.wait())
        except asyncio.TimeoutError:
            self.kill()

    async def _read_log(self, process: Forked) -> None:
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            output.info("model %s generation %d: %s", self.model, self.number, text)
