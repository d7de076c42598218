"""What the failover part draws from events, and that the baseline's replica is the source's very file."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import failover, restart
from tests.lab.measure import ClientLog


def event(at: float, name: str, **data: Any) -> dict[str, Any]:
    return {"time": at, "event": name, "data": data}


def test_a_sync_lasts_from_its_beginning_to_its_end() -> None:
    events = [
        event(1.0, "state", state="starting"), event(2.0, "synced"),  # of long ago
        event(10.0, "state", state="need_secondary"), event(11.0, "state", state="starting"),
        event(11.5, "state", state="need_secondary"),  # that attempt came to nothing
        event(12.0, "state", state="starting"), event(12.1, "state", state="starting"),
        event(14.5, "synced"), event(14.6, "state", state="protected"),
    ]  # fmt: skip
    assert failover.sync_seconds(events, 9.0) == 2.5
    assert failover.sync_seconds(events[:-2], 9.0) is None and failover.sync_seconds(events, 14.0) is None


class TwoServers:
    """As much of a lab as the sharing of an image needs: folders, and what is run on a server."""

    def __init__(self, base: Path) -> None:
        self.base, self.ran = base, []

    def run(self, host: str, command: str) -> str:
        self.ran.append((host, command))
        return ""


def test_the_replica_is_the_file_itself(tmp_path: Path) -> None:
    lab: Any = TwoServers(tmp_path)
    source = Path(restart.images(lab, "node-a"))
    source.parent.mkdir(parents=True)
    source.write_bytes(b"before")
    restart.share(lab, "node-a", "node-b")
    source.write_bytes(b"after!")
    assert Path(restart.images(lab, "node-b")).read_bytes() == b"after!"
    assert lab.ran[0][0] == "node-b" and "<name>db1</name>" in lab.ran[0][1] and "virsh -q define" in lab.ran[0][1]
    restart._forget(lab, "node-b")
    assert not os.path.exists(restart.images(lab, "node-b")) and source.read_bytes() == b"after!"
    assert lab.ran[-1] == ("node-b", "virsh -q undefine db1")
    assert restart.RUNS % 2 == 0, "the VM must end where kvmft is told to protect it"


class Answers:
    """A client whose log is there already, and a clock for it."""

    def __init__(self, commits: dict[int, float], echoes: list[float]) -> None:
        self.made = ClientLog(commits=commits, echoes=echoes)

    def wait_answers(self, after: float, seconds: float) -> None:
        assert seconds > 0

    def log(self) -> ClientLog:
        return self.made


def test_each_kind_of_answer_has_its_own_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "_protect", lambda lab, host, replay: None)
    monkeypatch.setattr(failover, "time", SimpleNamespace(monotonic=lambda: 10.0, sleep=lambda seconds: None))
    lab: Any = SimpleNamespace(run=lambda host, command: "")
    client: Any = Answers({1: 9.5, 2: 9.99, 3: 10.25}, [9.9, 10.0, 10.125, 10.13])
    campaign = failover.Campaign(lab, client)
    assert campaign.fault("process", False) == pytest.approx({"any answer": 125.0, "requests": 125.0, "commits": 260.0})
    campaign.fault("process", True)
    assert sorted(campaign.gaps) == [f"process, input {which}replayed: {of}" for which in ("not ", "")
                                     for of in ("any answer", "commits", "requests")]  # fmt: skip
    assert (campaign.source, campaign.target) == ("node-a", "node-b"), "it went there and back"
