from __future__ import annotations

import os

import pytest

from tests.support.confined import in_child

CODE = """
import resource
from service.system import privileges

privileges.dump_no_core()
privileges.gain_no_privileges()
privileges.drop_capabilities((privileges.CAP_DAC_OVERRIDE, privileges.CAP_DAC_READ_SEARCH))
status = dict(line.split(":\\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
print(json.dumps({"no new": status["NoNewPrivs"], "core": resource.getrlimit(resource.RLIMIT_CORE), **sets,
                  "host name": attempt(__import__("socket").sethostname, os.uname().nodename)}))
"""


def test_what_is_left() -> None:
    found = in_child(CODE)
    assert (found["no new"], found["core"]) == ("1", [0, 0])
    assert found["CapInh"] == found["CapAmb"] == 0
    assert found["CapPrm"] | found["CapEff"] | 0b110 == 0b110
    assert found["host name"] == "EPERM"


@pytest.mark.skipif(os.geteuid() != 0, reason="a user has no capabilities to keep")
def test_root_keeps_what_lets_it_read_files_of_others() -> None:
    assert in_child(CODE)["CapEff"] == 0b110
