"""When generations are checked on the disk. The other periodic work: end_to_end/test_holds.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from service.config.current import CurrentConfig
from service.config.load import CalibrationConfig, Config, ModelConfig
from service.config.sections import StorageConfig
from service.daemon.housekeeping import Housekeeping
from service.rollout.recovery import Recovery
from service.storage.scrub import InterruptedScrubError, Scrub
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk

HOUR = 3600.0


class Scene:
    """Housekeeping of two models, one of which has a previous generation, with a scripted scrub."""

    def __init__(self, hours: float = 24.0) -> None:
        self.idle = True
        self.interruptions = 0
        self.checked: list[tuple[str, int]] = []
        self.found: list[tuple[str, int, str | None]] = []
        links = {"a": (3, 2), "b": (1, None)}
        store = SimpleNamespace(current=lambda name: links[name][0], previous=lambda name: links[name][1])
        models = tuple(ModelConfig(name=name, calibration=CalibrationConfig(dir=Path("/"))) for name in links)
        config = Config(state_dir=Path("/"), models=models, storage=StorageConfig(scrub_hours=hours))
        self.housekeeping = Housekeeping(
            CurrentConfig(config),
            cast(StateFolder, SimpleNamespace(store=store)),
            Disk(),
            cast(Any, dict.fromkeys(links)),
            cast(Scrub, SimpleNamespace(find_damage=self._find, may_go_on=lambda: self.idle)),
            cast(Recovery, SimpleNamespace(note_scrubbed=self._note)),
        )

    async def _find(self, model: str, number: int) -> str | None:
        if self.interruptions:
            self.interruptions -= 1
            raise InterruptedScrubError
        self.checked.append((model, number))
        return "a bit" if model == "b" else None

    async def _note(self, *found: Any) -> None:
        self.found.append(found)

    async def at(self, seconds: float) -> int:
        """Return how many generations are checked at a time."""
        before = len(self.checked)
        self.housekeeping.scrub_if_due(seconds)
        if (task := self.housekeeping._scrubbing) is not None:
            await task
        return len(self.checked) - before


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_the_live_and_the_previous_generations_are_checked_once_a_day() -> None:
    scene = Scene()

    async def test() -> None:
        assert [await scene.at(hours * HOUR) for hours in (0.0, 0.9, 1.0, 1.1, 24.9, 25.0)] == [0, 0, 3, 0, 0, 3]
        assert scene.checked[:3] == [("a", 3), ("a", 2), ("b", 1)]
        assert scene.found[:3] == [("a", 3, None), ("a", 2, None), ("b", 1, "a bit")]

    run(test)


def test_it_waits_while_something_is_quantized_and_goes_on_where_it_was() -> None:
    scene = Scene()

    async def test() -> None:
        await scene.at(0.0)
        scene.idle = False
        assert await scene.at(2 * HOUR) == 0
        scene.idle, scene.interruptions = True, 1
        assert await scene.at(2.1 * HOUR) == 0
        assert await scene.at(2.2 * HOUR) == 3

    run(test)


def test_it_can_be_turned_off_and_be_more_frequent() -> None:
    never, often = Scene(0.0), Scene(0.25)

    async def test() -> None:
        assert [await never.at(hours * HOUR) for hours in (0.0, 100.0)] == [0, 0]
        assert [await often.at(hours * HOUR) for hours in (0.0, 0.25, 0.3, 0.5)] == [0, 3, 0, 3]

    run(test)
