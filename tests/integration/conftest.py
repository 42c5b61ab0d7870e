from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import generations


@pytest.fixture(scope="module", autouse=True)
def _fork_server_ends_with_the_module() -> Iterator[None]:
    yield
    generations.close()
