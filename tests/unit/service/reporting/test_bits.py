from __future__ import annotations

import pytest

from service.reporting.bits import HEAD, Chosen, chosen_bits, frontier, tries

LAYER = {"name": "conv1", "bits": 2, "given": False, "weights": 27, "errors": {"2": 0.5, "3": 0.125}}


def test_a_layer_says_what_one_bit_less_or_more_would_change():
    (narrow,) = chosen_bits({"chosen_bits": {"layers": [LAYER]}})
    assert narrow == Chosen("conv1", "27", "2", "5.00e-01", "", "1.25e-01")
    assert len(narrow) == len(HEAD)
    assert narrow.description == "2 bits: error 5.00e-01, with one bit more 1.25e-01"
    (wide,) = chosen_bits({"chosen_bits": {"layers": [{**LAYER, "bits": 3}]}})
    assert wide.description == "3 bits: error 1.25e-01, with one bit less 5.00e-01"


def test_bits_that_were_given_have_no_other_reason():
    (layer,) = chosen_bits({"chosen_bits": {"layers": [{**LAYER, "given": True}]}})
    assert layer.description == "2 bits: given by the settings"


@pytest.mark.parametrize("report", [{}, {"chosen_bits": None}, {"chosen_bits": {}}])
def test_one_width_for_all_layers_has_nothing_to_list(report: dict):
    assert chosen_bits(report) == []
    assert tries(report) is None
    assert frontier(report) == []


def test_sizes_that_were_tried_are_listed_with_what_they_lost():
    tried = [{"bytes": 900, "drop": 0.5}, {"bytes": 1200, "drop": -0.25}]
    assert tries({"chosen_bits": {"tries": tried}}) == "900 bytes lose +0.50, 1200 bytes lose -0.25"


def test_the_artifact_is_placed_between_one_width_for_all_layers_and_bits_for_each():
    known = {"uniform": [{"bits": 2, "bytes": 90, "error": 0.5}], "chosen": [{"bytes": 89, "error": 0.25}]}
    assert frontier({"chosen_bits": {"bytes": 80, "error": 0.75, "frontier": known}}) == [
        ("uniform", [("2 bits in all layers", 90, 0.5)]),
        ("auto", [("bits for each layer", 89, 0.25)]),
        ("artifact", [("this artifact", 80, 0.75)]),
    ]
    assert frontier({"chosen_bits": {"bytes": 80, "error": 0.75}}) == []  # a report of before
