"""`kvmft events`, `explain` and `top` against a real agent's answers over a real control socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.events import EventLog
from kvmft.agent.history import History
from kvmft.agent.lines import serve
from kvmft.agent.service import Agent
from kvmft.cli.main import main
from kvmft.cli.table import table
from kvmft.errors import KvmftError
from tests.unit.agent.test_agent_safety import agent
from tests.unit.cli.test_story import CUT, PAIRING


class OtherHosts:
    """Calls of peers land in another agent's request handler, as over the wire."""

    def __init__(self, others: dict[str, Agent | None]) -> None:
        self.others = others

    async def call(self, peer: str, op: str, **args: Any) -> Any:
        other = self.others[peer]
        if other is None:
            raise KvmftError("ft_network_down", f"{peer} does not answer on the FT network.", "")
        args = json.loads(json.dumps(args))
        return json.loads(json.dumps(await other.peer_requests.answer("a", op, args)))


def host(tmp_path: Path, name: str) -> Agent:
    made = agent(tmp_path / name)
    made.config = replace(made.config, host=name)
    made.events = EventLog(str(tmp_path / name / "ev" / "events.jsonl"), name)
    made.history = History(made)
    return made


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Agent, Agent]:
    """Agents a and b; b's log is of node-b, a's of node-a, with a pairing and a power cut."""
    a, b = host(tmp_path, "a"), host(tmp_path, "b")
    for each in (*PAIRING, *CUT):
        log = a.events if each["host"] == "node-a" else b.events
        log.add("db1", each["event"], each["reason"], when=each["time"], **each["data"])
    a.peers = OtherHosts({"b": b})  # type: ignore[assignment]
    return a, b


@pytest.fixture
def socket_(pair: tuple[Agent, Agent], tmp_path: Path) -> Iterator[str]:
    """Agent a's control socket, served from a thread."""
    path = str(tmp_path / "control.sock")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> asyncio.AbstractServer:
        return await asyncio.start_unix_server(lambda r, w: serve(r, w, pair[0].requests.answer), path)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(5)
    yield path

    async def end() -> None:
        server.close()
        await asyncio.sleep(0.02)  # its connections see that their clients went away

    asyncio.run_coroutine_threadsafe(end(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def run(socket: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["--socket", socket, *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_events_of_this_host(socket_: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, __ = run(socket_, capsys, "events", "--since", "7", "--json")
    assert code == 0 and [json.loads(line)["seq"] for line in out.splitlines()] == [8, 9, 10]
    code, out, __ = run(socket_, capsys, "events", "--limit", "1")
    assert code == 0 and "state" in out and "protected" in out and len(out.splitlines()) == 1


def test_events_of_all_hosts_in_one_order(socket_: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(socket_, capsys, "events", "--cluster", "--vm", "db1", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, err, len(found)) == (0, "", len(PAIRING) + len(CUT))
    assert [each["time"] for each in found] == sorted(each["time"] for each in found)
    assert {each["host"] for each in found} == {"a", "b"}


def test_a_host_that_does_not_answer_is_named(
    pair: tuple[Agent, Agent], socket_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pair[0].peers.others["b"] = None  # type: ignore[attr-defined]
    code, out, err = run(socket_, capsys, "events", "--cluster")
    assert code == 3 and len(out.splitlines()) == 10
    assert "b did not answer" in err
    code, out, __ = run(socket_, capsys, "explain", "db1")
    assert code == 3 and "b did not answer, so its part is missing" in out


def test_explain_and_events_story_say_the_same(
    socket_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, __ = run(socket_, capsys, "explain", "db1")
    assert code == 0 and out.startswith("db1: failover to b")
    assert run(socket_, capsys, "events", "--vm", "db1", "--story")[1] == out
    told = json.loads(run(socket_, capsys, "explain", "db1", "--json")[1])
    assert (told["lacking"], told["ended"], told["missing_hosts"]) == ([], True, {})


def test_no_story_is_an_error_that_says_what_to_do(
    socket_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, __, err = run(socket_, capsys, "explain", "nope")
    assert code == 1 and "No failover or pairing of VM nope" in err
    code, __, err = run(socket_, capsys, "events", "--story")
    assert code == 1 and "--vm" in err


def test_verify_of_all_hosts(
    pair: tuple[Agent, Agent], socket_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, __ = run(socket_, capsys, "events", "--verify", "--cluster")
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == ["a", "b"]
    head = out.splitlines()[0].split()[-1]
    assert run(socket_, capsys, "events", "--verify", "--anchor", head)[0] == 0
    other = head.replace(head[-8:], "00000000")
    assert run(socket_, capsys, "events", "--verify", "--anchor", other)[0] == 1
    path = Path(pair[1].events._path)
    path.write_bytes(path.read_bytes().replace(b'"won": true', b'"won": null'))
    code, out, __ = run(socket_, capsys, "events", "--verify", "--cluster")
    assert code == 1 and "b: BROKEN" in out and "a: intact" in out
    pair[0].peers.others["b"] = None  # type: ignore[attr-defined]
    assert run(socket_, capsys, "events", "--verify", "--cluster")[0] == 3


def test_a_bad_anchor_is_a_usage_error(socket_: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket", socket_, "events", "--verify", "--anchor", "12"])
    assert caught.value.code == 2


def test_reading_a_long_log_does_not_stall_the_agent(pair: tuple[Agent, Agent]) -> None:
    """The log is not read to its end before the agent's loop has turned meanwhile."""
    a = pair[0]
    reading, turned = threading.Event(), threading.Event()
    seen: list[bool] = []

    def slow(*_: Any) -> list[Any]:
        reading.set()
        seen.append(turned.wait(20))
        return []

    a.events.read = slow  # type: ignore[method-assign]

    async def ask() -> Any:
        task = asyncio.create_task(a.requests.answer("events", {}))
        while not reading.is_set():
            await asyncio.sleep(0.001)
        turned.set()
        return await task

    asyncio.run(ask())
    assert seen == [True]


# -- top -------------------------------------------------------------------------------------------


def status(vm: str, **figures: Any) -> dict[str, Any]:
    return {"vm": vm, "state": "protected", "role": "primary", "generation": 4, "epochs": 100,
            "pause_ms": {"p50": 2.04, "p99": 4.9}, "commit_ms": {"p50": 1.5, "p99": None},
            "pages_per_epoch": {"p50": 180.0}, "log_bandwidth_bytes_s": 41_230_000,
            "held_bytes": 1500, "sync_percent": 100.0, **figures}  # fmt: skip


def test_the_table_of_top() -> None:
    before = [status("db1"), status("again", epochs=900)]
    standby = {"vm": "web", "state": "protected", "role": "secondary", "generation": None}
    now = [status("db1", epochs=190), status("again", epochs=3), standby]
    assert table(before, now, 2.0).splitlines() == [
        "VM     STATE      ROLE       GEN  EPOCHS/S  PAUSE P50/P99  COMMIT P50/P99  PAGES"
        "  LOG MB/S  HELD  SYNC %",
        "db1    protected  primary      4      45.0        2.0/4.9           1.5/-    180"
        "     41.23  1500   100.0",
        "again  protected  primary      4         -        2.0/4.9           1.5/-    180"
        "     41.23  1500   100.0",
        "web    protected  secondary    -         -            -/-             -/-      -"
        "         -     -       -",
    ]


def test_top_once_without_a_vm(socket_: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, __ = run(socket_, capsys, "top", "--once", "--interval", "0.1")
    assert code == 0 and "No VM is protected here." in out and "\x1b" not in out
    assert json.loads(run(socket_, capsys, "top", "--once", "--json")[1]) == []
