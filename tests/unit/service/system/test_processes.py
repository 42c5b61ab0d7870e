"""Environment, lifetime and priority of child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from service.system.processes import at_background_priority, child_environment, cores

SLEEPER = (
    "import os, sys, time; from service.system.processes import die_with_parent; die_with_parent(int(sys.argv[1]))\n"
)
SLEEPER += "print(os.getpid(), flush=True); time.sleep(600)"
PARENT = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]).wait()"


def test_openmp_threads_of_children_wait_passively() -> None:
    base = {"PATH": "/bin", "NOTIFY_SOCKET": "/run/x", "OMP_NUM_THREADS": "64"}
    made = child_environment(3, base)
    assert (made["OMP_WAIT_POLICY"], made["OMP_NUM_THREADS"], made["MKL_NUM_THREADS"]) == ("PASSIVE", "3", "3")
    assert made["PATH"] == "/bin"
    assert "NOTIFY_SOCKET" not in made
    assert child_environment(None, {})["OMP_NUM_THREADS"] == str(cores())
    assert base["OMP_NUM_THREADS"] == "64"


def test_the_kernel_cache_is_limited_on_request() -> None:
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in child_environment(1, {})
    assert child_environment(1, {}, kernels=8)["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "8"


def test_threads_sleep_at_once_unless_they_may_spin():
    made = child_environment(1, {"GOMP_SPINCOUNT": "7"})
    assert (made["OMP_WAIT_POLICY"], made["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")
    assert child_environment(1, {}, spins=9)["GOMP_SPINCOUNT"] == "9"


def test_a_child_dies_with_its_parent_even_after_kill_9() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, SLEEPER], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        # Only init would reap an orphan, and this machine may have none: a zombie counts as dead.
        psutil.wait_procs([child], timeout=60)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_whose_parent_has_already_exited_exits() -> None:
    done = subprocess.run([sys.executable, "-c", SLEEPER, str(os.getpid() + 1)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")


def test_lower_priority_changes_every_setting() -> None:
    code = "import os; from service.system.processes import lower_priority; lower_priority(19)\n"
    code += "print(os.nice(0), os.sched_getscheduler(0))\n"
    code += "print(open('/proc/self/oom_score_adj').read())\n"
    code += "print(os.path.exists(g := '/proc/self/autogroup') and open(g).read().strip() or 'nice 19')"
    before = autogroup()
    for own_session in (True, False):
        options = {"capture_output": True, "text": True, "check": True, "start_new_session": own_session}
        printed = subprocess.run([sys.executable, "-c", code], **options).stdout.split()
        assert printed[:3] == ["19", str(os.SCHED_IDLE), "1000"]
        if own_session:
            assert printed[-2:] == ["nice", "19"]
    assert autogroup() == before  # a session with other members stays unchanged


def autogroup() -> str:
    path = Path("/proc/self/autogroup")
    return path.read_text() if path.exists() else ""


def test_work_at_background_priority_leaves_the_process_unchanged() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    thread, nice = at_background_priority(lambda: (threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0)))
    assert (thread != threading.get_native_id(), nice) == (True, min(own + 10, 19))
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    with pytest.raises(ZeroDivisionError):
        at_background_priority(lambda: 1 // 0)


RAISES = """
import os, threading, time
from service.system.processes import at_background_priority, may_raise_priority, raise_threads
def look(thread=0):
    return os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)
own, seen = look(), []
def work():
    seen.append(look())
    helper = threading.Thread(target=threading.Event().wait, daemon=True)  # as an engine starts some
    helper.start()
    seen.append(look(helper.native_id))
    while IDLE_S < 1 and look()[0] != os.SCHED_OTHER:
        time.sleep(0.01)
    return helper.native_id
if may_raise_priority():
    helper = at_background_priority(work, IDLE_S)
    low = own[1] + 10
    assert seen == [(os.SCHED_IDLE, low)] * 2, seen
    raise_threads()
    assert look(helper) == own == look(), look(helper)
print("done")
"""


@pytest.mark.parametrize("idle_s", [0.01, 60.0])
def test_threads_that_idle_work_starts_get_the_priority_of_the_process(idle_s: float) -> None:
    """The work with few seconds on idle cores ends only once it has others, too."""
    code = RAISES.replace("IDLE_S", str(idle_s))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_the_oom_killer_prefers_the_process_that_loads() -> None:
    code = "from service.system.processes import preferred_oom_victim\n"
    code += "def score(): return open('/proc/self/oom_score_adj').read().strip()\n"
    code += "print(score())\nwith preferred_oom_victim(): print(score())\nprint(score())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, meanwhile, after = map(int, done.stdout.split())
    assert before == after
    assert meanwhile == max(before, 500)
