from __future__ import annotations

import pytest

from tests.support.quant_layers import Layer, make_layer


@pytest.fixture
def layer() -> Layer:
    return make_layer(rows=6, d=24)
