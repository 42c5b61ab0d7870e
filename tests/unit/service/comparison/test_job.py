from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.comparators.network import COMPARATORS as IMPLEMENTED
from edged.comparators.peers import aimet, brevitas
from edged.comparators.peers.peer import open_peer
from edged.errors import UsageError
from edged.spec import RECIPES, Choice
from service.comparison.job import CAT, COMPARATORS, DEFAULT_METHODS, METHODS, PEERS, PEERS_OF_WEIGHTS, Measurement


def test_it_names_what_the_library_has():
    assert set(COMPARATORS) == set(IMPLEMENTED)
    assert set(METHODS) == {*IMPLEMENTED, CAT, *RECIPES}
    assert set(DEFAULT_METHODS) < set(METHODS)
    assert set(PEERS_OF_WEIGHTS) == {*brevitas.PEERS, aimet.PEER}
    with pytest.raises(UsageError) as caught:
        open_peer("another", 4, 8)
    assert set(PEERS) == set(str(caught.value).partition("choose one of ")[2].split(", "))


def test_a_measurement_is_the_same_after_its_way_through_a_pipe():
    job = Measurement(
        *(Path("a.pth"), Path("calib"), Path("data"), Path("cache"), "adaround", 3),
        choice=Choice(key="ema"),
        input={"size": 32},
        iterations=7,
        settings={"order": "weight"},
    )
    assert Measurement.from_dict(json.loads(json.dumps(job.to_dict()))) == job
