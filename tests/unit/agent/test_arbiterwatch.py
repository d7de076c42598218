"""What the agent concludes from looking at the arbiter again and again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from kvmft.adapters.seen import Seen, load_seen, save_seen
from kvmft.agent import arbiterwatch
from kvmft.agent.arbiterwatch import ArbiterWatch
from kvmft.agent.config import parse
from kvmft.core.arbitration import Reply
from kvmft.core.position import Position
from kvmft.errors import KvmftError
from kvmft.ports import Health
from tests.unit.agent.test_agent_safety import BASE


class Told:
    """An arbiter whose probe tells what it is told to tell."""

    def __init__(self) -> None:
        self.health: Health | KvmftError = Health("etcd 3.5.9", "one", {"": 10})
        self.hang = threading.Event()
        self.hang.set()
        self.calls = 0
        self.hung = False

    def probe(self, cluster: str, host: str) -> Health:
        self.calls += 1
        self.hung = not self.hang.wait(30) or self.hung
        if isinstance(self.health, KvmftError):
            raise self.health
        return self.health

    def swap(self, key: str, base: bytes | None, new: bytes | None, attempt: int = 0) -> Reply:
        raise AssertionError("a probe swaps nothing of a VM")


def watch(tmp_path: Path, **section: Any) -> tuple[ArbiterWatch, Told]:
    made = ArbiterWatch(parse({**BASE, **({"arbiter": section} if section else {})}),
                        str(tmp_path / "vm"), str(tmp_path / "seen.json"))  # fmt: skip
    told = Told()
    if not section:
        made._arbiter = told
    return made, told


def look(made: ArbiterWatch) -> tuple[bool | None, str]:
    asyncio.run(made.look())
    return made.ok, made.reason


def claims(tmp_path: Path) -> None:
    (tmp_path / "vm" / "db1").mkdir(parents=True)
    for name in ("claims.json", "state.json"):
        (tmp_path / "vm" / "db1" / name).write_text("{}")


def test_without_an_arbiter_it_says_that_there_is_no_automatic_failover(tmp_path: Path) -> None:
    ok, reason = look(watch(tmp_path, type="none")[0])
    assert ok is False and "no automatic failover" in reason


def test_what_was_seen_is_kept_and_only_rises(tmp_path: Path) -> None:
    made, told = watch(tmp_path)
    assert look(made) == (True, "etcd 3.5.9")
    told.health = Health("etcd 3.5.9", "one", {"": 12})
    assert look(made)[0]
    assert load_seen(str(tmp_path / "seen.json")) == Seen("one", {"": 12})


@pytest.mark.parametrize("gone", ["claims.json", "state.json"], ids=["no claims", "turned off"])
@pytest.mark.parametrize(
    ("health", "words"),
    [(Health("etcd", "one", {"": 9}), "went back, from revision 10 to 9"),
     (Health("etcd", "other", {"": 99}), "another arbiter than before")],
)  # fmt: skip
def test_a_broken_history_is_an_error_as_long_as_a_vm_depends_on_it(
    tmp_path: Path, health: Health, words: str, gone: str
) -> None:
    claims(tmp_path)
    made, told = watch(tmp_path)
    look(made)
    told.health = health
    for __ in range(2):
        ok, reason = look(made)
        assert ok is False and words in reason and "person" in reason
    assert load_seen(str(tmp_path / "seen.json")) == Seen("one", {"": 10})
    again, told = watch(tmp_path)
    told.health = health
    assert look(again)[0] is False, "also after a restart of the agent"
    (tmp_path / "vm" / "db1" / gone).unlink()
    assert look(again)[0] is True
    assert load_seen(str(tmp_path / "seen.json")) == Seen(health.arbiter, health.revisions)


def test_a_vm_whose_record_vanished_from_the_directory_is_a_broken_history(tmp_path: Path) -> None:
    claims(tmp_path)
    made, told = watch(tmp_path)
    told.health = Health("dir", "one", {"u1": 4, "u2": 7})
    look(made)
    told.health = Health("dir", "one", {"u1": 5})
    ok, reason = look(made)
    assert ok is False and "from revision 7 to 0" in reason


def test_an_error_of_the_probe_is_the_reason(tmp_path: Path) -> None:
    made, told = watch(tmp_path)
    told.health = KvmftError("arbiter_full", "It is full.", "Free space.")
    assert look(made) == (False, "It is full. Free space.")


def test_a_hung_probe_is_told_and_not_started_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arbiterwatch, "PATIENCE", 0.1)
    made, told = watch(tmp_path)
    told.hang.clear()

    async def looks() -> None:
        for __ in range(3):
            await made.look()
            assert made.ok is False and "has not answered" in made.reason
        assert told.calls == 1 and not told.hung, "nobody waited for its end"
        monkeypatch.setattr(arbiterwatch, "PATIENCE", 30.0)
        told.hang.set()
        await made.look()
        assert made.ok is True

    asyncio.run(looks())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"arbiter": "x"}', '{"arbiter": 1, "revisions": [1]}'])
def test_a_damaged_file_of_what_was_seen_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "seen.json").write_text(text)
    assert load_seen(str(tmp_path / "seen.json")) is None
    made, __ = watch(tmp_path)
    assert look(made)[0]


def test_the_position_of_a_vm_is_its_own_or_that_of_the_whole_arbiter(tmp_path: Path) -> None:
    path = str(tmp_path / "seen.json")
    save_seen(path, Seen("one", {"u1": 4}))
    seen = load_seen(path)
    assert seen is not None
    assert seen.position("u1") == Position("one", 4) and seen.position("u2") is None
    assert Seen("one", {"": 9}).position("u2") == Position("one", 9)


@pytest.mark.parametrize("ok", [True, False])
def test_a_host_that_cannot_ask_the_arbiter_takes_no_secondary(tmp_path: Path, ok: bool) -> None:
    from tests.unit.agent.test_agent_safety import agent
    from tests.unit.agent.test_mixed_versions import XML

    a = agent(tmp_path)
    a.host.versions = lambda: {"qemu": "7.2.22"}
    a.host.admit = lambda *_: []
    a.arbiter_ok, a.arbiter_watch = None, watch(tmp_path)[0]
    if not ok:
        a.arbiter_watch._arbiter.health = KvmftError("arbiter_full", "It is full.", "Free space.")
    answer = asyncio.run(a.peer_requests.admit({"vm": "v", "xml": XML, "disks": []}))
    assert [each["code"] for each in answer["lacking"]] == ([] if ok else ["no_arbiter"])
    assert ok or "a cannot ask the arbiter: It is full." in answer["lacking"][0]["message"]


def test_two_who_look_at_once_write_what_was_seen_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent looks every few seconds, and when a switchover is ordered."""
    made, told = watch(tmp_path)
    began, again = threading.Event(), threading.Event()

    def save(path: str, seen: Seen) -> None:
        told.health = Health("etcd 3.5.9", "one", {"": 11})
        if began.is_set():
            again.set()
        began.set()
        assert not again.wait(0.2), "two write at once"
        again.clear()
        save_seen(path, seen)
        began.clear()

    monkeypatch.setattr(arbiterwatch, "save_seen", save)

    async def looks() -> None:
        first = asyncio.create_task(made.look())
        await asyncio.to_thread(began.wait, 10)
        await asyncio.gather(first, made.look())

    asyncio.run(looks())
    assert (made.ok, made.reason) == (True, "etcd 3.5.9")
    assert load_seen(str(tmp_path / "seen.json")) == Seen("one", {"": 10})
    assert look(made)[0] and load_seen(str(tmp_path / "seen.json")) == Seen("one", {"": 11})
