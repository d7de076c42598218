"""Real-time priority is given where it is permitted, and given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvmft.adapters.priority import Priority


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_it_is_given_and_given_back(sleeper: int) -> None:
    priority = Priority(sleeper)
    assert priority.given and not priority.refused
    assert os.sched_getscheduler(sleeper) == os.SCHED_RR | os.SCHED_RESET_ON_FORK
    priority.give_back()
    assert os.sched_getscheduler(sleeper) == os.SCHED_OTHER
    priority.give_back()


def test_what_a_killed_worker_left_is_taken_over_and_given_back(sleeper: int) -> None:
    Priority(sleeper)
    after = Priority(sleeper)
    assert after.given
    after.give_back()
    assert os.sched_getscheduler(sleeper) == os.SCHED_OTHER


def test_what_an_administrator_chose_is_left_alone(sleeper: int) -> None:
    os.sched_setscheduler(sleeper, os.SCHED_FIFO, os.sched_param(7))
    priority = Priority(sleeper)
    assert not priority.given
    priority.give_back()
    assert (os.sched_getscheduler(sleeper), os.sched_getparam(sleeper).sched_priority) == (os.SCHED_FIFO, 7)


def test_a_thread_that_ended_is_no_error(sleeper: int) -> None:
    priority = Priority(sleeper)
    os.kill(sleeper, 9)
    os.waitpid(sleeper, 0)
    priority.give_back()
    assert "No such process" in Priority(sleeper).refused


def test_without_the_right_to_it_everything_goes_on(sleeper: int) -> None:
    script = (f"import os; from kvmft.adapters.priority import Priority; os.setuid(65534); p = Priority({sleeper}); "
              "print(p.given, p.refused); p.give_back()")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False [Errno 1]")
