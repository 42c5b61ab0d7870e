"""Answers requests of several clients from one forward pass. Runs in the generation."""

from __future__ import annotations

import mmap
import threading
import time
from http import HTTPStatus
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from service.inference.batch_queue import Waiting
from service.inference.binary import bodies_of
from service.inference.observation import observing
from service.inference.responses import Answer
from service.ipc import frames
from service.ipc.frames import Outbox
from service.ipc.options import Batching
from service.ipc.shared_memory import Inbox

if TYPE_CHECKING:
    from service.inference.model import ServedModel
    from service.inference.requests import Request


class _Prepared(NamedTuple):
    header: dict[str, Any]
    request: Request
    seconds: float  # that preparing it took


class BatchServer:
    """Two threads: one reads and prepares requests, the other computes what waits and answers it.

    Args:
        stream: To the supervisor.
        served: The model.
        batching: How far requests are gathered.
        memory: Shared with the supervisor; None where all bodies come through the stream.
    """

    def __init__(
        self, stream: BufferedIOBase, served: ServedModel, batching: Batching, memory: mmap.mmap | None = None
    ) -> None:
        self._inbox = Inbox(stream, memory)
        self._outbox = Outbox(stream)
        self._served = served
        self._observation = observing(served, self._outbox)
        self._max_batch = batching.max_batch
        self._waiting: Waiting[_Prepared] = Waiting(batching)

    def run(self) -> None:
        """Answer until the supervisor closes the stream.

        Raises:
            OSError: It went away in the middle of an answer.
        """
        threading.Thread(target=self._read, name="prepare", daemon=True).start()
        while batch := self._waiting.take():
            self._answer(batch)

    def _read(self) -> None:
        # Of this thread alone: it would have as many helpers of its own, which the one that computes would have to wait
        # for. One core is enough to prepare.
        torch.set_num_threads(1)
        try:
            while (frame := self._inbox.read()) is not None:
                self._prepare(*frame)
        except (OSError, frames.FrameError):
            pass  # the supervisor went away
        finally:
            self._waiting.close()

    def _prepare(self, header: dict[str, Any], content: bytes | memoryview) -> None:
        start = time.monotonic()
        request = self._served.prepare(*bodies_of(header, content))
        seconds = time.monotonic() - start
        if isinstance(request, Answer):
            self._send(header["id"], request, seconds)
        else:
            images = self._max_batch if header.get("alone") else len(request.images)
            self._waiting.put(_Prepared(header, request, seconds), images, start)

    def _answer(self, batch: list[_Prepared]) -> None:
        start = time.monotonic()
        answers = self._served.answer_together([prepared.request for prepared in batch])
        seconds = time.monotonic() - start
        images = sum(len(prepared.request.images) for prepared in batch)
        for prepared, answer in zip(batch, answers, strict=True):
            self._send(prepared.header["id"], answer, prepared.seconds + seconds, images)
            images = 0  # each pass is told of once
            if "observe" in prepared.header and answer.status == HTTPStatus.OK:
                self._observation.offer(prepared.header["observe"], prepared.request)

    def _send(self, identity: int, answer: Answer, seconds: float, images: int = 0) -> None:
        told = {"status": answer.status, "seconds": seconds, "json_bytes": answer.body.json_bytes, "images": images}
        self._outbox.send({"id": identity, **told}, answer.body.content)
