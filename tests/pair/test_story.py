"""The events of a real failover tell its whole story, with reasons and receipts, in order."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.events import EventLog
from kvmft.agent.history import merge
from kvmft.cli import story
from tests.pair.harness import Pair, Worker, wait_for


def logs_of(directory: Path, workers: dict[str, list[Worker]]) -> dict[str, EventLog]:
    """What each host's agent would have logged of its workers."""
    logs = {}
    for host, several in workers.items():
        log = logs[host] = EventLog(str(directory / host / "events.jsonl"), host)
        for worker in several:
            for message in worker.poll():
                if message["msg"] == "event":
                    log.add("counter", message["event"], message["reason"], when=message["time"],
                            **message["data"])  # fmt: skip
    return logs


def incidents(directory: Path, workers: dict[str, list[Worker]]) -> list[story.Story]:
    logs = logs_of(directory, workers)
    assert all(log.verify().intact for log in logs.values())
    events = merge({host: log.read(None, 0, 1000) for host, log in logs.items()}, {})
    return [story.tell("counter", each) for each in story.incidents(events)]


def figures(told: story.Story, stage: str) -> dict[str, Any]:
    return next(step.figures for step in told.steps if step.stage == stage)


@pytest.mark.parametrize("silent", [False, True], ids=["qemu dies", "host is silent"])
def test_a_takeover_is_told_from_the_loss_to_its_first_output(
    pair: Pair, tmp_path: Path, silent: bool
) -> None:
    primary, secondary = pair.protect()
    if silent:
        primary.poll()
        primary.process.send_signal(signal.SIGSTOP)
        pair.primary_vm.process.send_signal(signal.SIGSTOP)
    else:
        pair.primary_vm.process.kill()
    secondary.wait(msg="done", outcome="activated")
    workers = {"node-a": [primary], "node-b": [secondary]}
    pairing, failover = incidents(tmp_path / "logs", workers)
    assert (pairing.kind, pairing.lacking(), pairing.ended) == ("pairing", [], True)
    assert (failover.kind, failover.lacking()) == ("takeover", ["protected"])
    sent, verdict = figures(failover, "sent"), figures(failover, "verdict")
    assert (sent["base"], sent["asked"]) == (2, 3)
    assert verdict["nonce"] == sent["nonce"] and verdict["nonce"] in verdict["record"]
    assert verdict["verdict"] == "won" and verdict["times"] == 1
    assert figures(failover, "activated")["activation_ms"] > 0
    loss = figures(failover, "loss")
    assert loss.get("detection_ms", 0) >= 1000 if silent else loss.get("signal", "farewell")
    assert [step.ms for step in failover.steps] == sorted(step.ms for step in failover.steps)


def test_a_lost_secondary_is_told_until_the_held_output_is_released(
    pair: Pair, tmp_path: Path
) -> None:
    primary, secondary = pair.protect()
    secondary.process.kill()
    primary.wait(msg="done", outcome="solo")
    told = incidents(tmp_path / "logs", {"node-a": [primary], "node-b": [secondary]})[-1]
    assert told.kind == "stays"
    assert figures(told, "loss")["signal"] == "closed"
    assert set(told.lacking()) <= {"output", "protected"}, "the harness' guest has no network"


def test_a_planned_switchover_is_told(pair: Pair, tmp_path: Path) -> None:
    primary, secondary = pair.protect()
    primary.send(cmd="switch")
    primary.wait(msg="handed_over")
    secondary.wait(msg="done", outcome="activated")
    told = incidents(tmp_path / "logs", {"node-a": [primary], "node-b": [secondary]})[-1]
    assert (told.kind, told.lacking()) == ("switchover", ["protected"])
    primary.send(cmd="release")
    primary.wait(msg="event", event="vm_killed")
    wait_for("the worker's end", lambda: primary.process.poll() is not None)
    assert primary.find(msg="event", event="vm_died") is None, "a handover is told as a loss"


DIES_IN_A_CHECKPOINT = """
import os, signal
import kvmft.adapters.memory as memory
collect = memory.GuestMemory.collect
def collect_and_kill(self):
    found = collect(self)
    if os.path.exists({flag!r}):
        os.kill(self._pid, signal.SIGKILL)
        import select
        gone = select.poll()
        gone.register(os.pidfd_open(self._pid), select.POLLIN)
        gone.poll(2000)
    return found
memory.GuestMemory.collect = collect_and_kill
"""


def test_a_vm_that_dies_inside_a_checkpoint_is_taken_over_at_once(pair: Pair) -> None:
    flag = pair.root / "die"
    primary, secondary = pair.protect(primary_patch=DIES_IN_A_CHECKPOINT.format(flag=str(flag)))
    flag.touch()
    secondary.wait(msg="done", outcome="activated")
    assert primary.wait(msg="event", event="vm_died")["reason"] == "QEMU died on the primary"
    reasons = {message["reason"] for message in secondary.messages if message["msg"] == "state"}
    assert "the primary's agent did not come back" not in reasons, "it waited for an agent that was there"
