"""The limit on open files, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from service.system.descriptors import allow_descriptors
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(allow_descriptors(wanted), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "expected"),
    [
        (100, 200, 150, "150 150 200"),
        (100, 200, 300, "200 200 200"),
        (100, 200, 50, "100 100 200"),  # never lowered
    ],
)
def test_the_soft_limit_is_raised_as_far_as_needed_and_allowed(
    soft: int, hard: int, wanted: int, expected: str
) -> None:
    command = [sys.executable, "-c", CODE, str(soft), str(hard), str(wanted)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == expected.split()
