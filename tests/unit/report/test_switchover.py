"""The gap of a switchover is that between two events of two hosts, and a failure leaves the rest of the bundle."""

from __future__ import annotations

from typing import Any

import pytest

from kvmft.errors import KvmftError
from kvmft.report import switchover


class Cluster:
    """Two hosts' answers, as seen from host a; a switchover takes `gap` seconds."""

    def __init__(self, gap: float = 0.05, refuses: int | None = None) -> None:
        self.primary, self.secondary, self.gap, self.refuses = "a", "b", gap, refuses
        self.events: list[dict[str, Any]] = []
        self.now, self.orders, self.looks = 100.0, 0, 0
        self.add("b", "activated", kind="takeover")  # of long ago

    def add(self, host: str, event: str, **data: Any) -> None:
        seq = sum(each["host"] == host for each in self.events) + 1
        self.events.append({"host": host, "seq": seq, "event": event, "at": self.now, "data": data})

    def ask(self, op: str, **args: Any) -> Any:
        match op:
            case "vm_status":
                self.looks += 1
                state = "starting" if self.looks % 3 == 2 else "protected"
                return {"state": state, "reason": "", "primary": self.primary, "secondary": self.secondary}
            case "events_cluster":
                return {"events": list(self.events)}
        assert op == "vm_failover" and args == {"vm": "v", "mode": "planned", "target": self.secondary}
        self.orders += 1
        if self.orders == self.refuses:
            raise KvmftError("not_protected", "no secondary can take it without loss", "Wait.")
        self.now += 10
        self.add(self.primary, "state", state="failing_over")
        self.now += self.gap
        self.add(self.secondary, "activated", kind="planned")
        self.primary, self.secondary = self.secondary, self.primary
        return {"changed": True}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchover, "LOOK", 0.01)


def test_there_and_back() -> None:
    cluster = Cluster()
    found = switchover.there_and_back(cluster.ask, "v")
    assert [(each["source"], each["target"], each["outage_ms"]) for each in found["switches"]] == [
        ("a", "b", 50.0), ("b", "a", 50.0)]  # fmt: skip
    assert "error" not in found and cluster.primary == "a"


def test_a_refusal_is_told_and_nothing_more_is_ordered() -> None:
    cluster = Cluster(refuses=2)
    found = switchover.there_and_back(cluster.ask, "v")
    assert len(found["switches"]) == 1 and "without loss" in found["error"] and cluster.orders == 2


def test_a_pair_that_does_not_get_whole_again_is_not_switched_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchover, "PROTECTED_WITHIN", 0.05)
    cluster = Cluster()
    plain = cluster.ask

    def ask(op: str, **args: Any) -> Any:
        found = plain(op, **args)
        return {**found, "state": "need_secondary", "reason": "alone"} if op == "vm_status" and cluster.orders else found

    found = switchover.there_and_back(ask, "v")
    assert found["switches"] == [] and "need_secondary (alone)" in found["error"] and cluster.orders == 1


def test_events_that_lack_one_end_have_no_outage() -> None:
    cluster = Cluster()
    assert switchover.outage(cluster.events, "a", "b") is None
