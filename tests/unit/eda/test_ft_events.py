"""The event source, with the agent's own events log, control socket and command; only VMs are made up."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvmft.agent import events as events_module
from kvmft.agent.events import EventLog
from kvmft.agent.history import History
from kvmft.agent.lines import MAX_LINE, serve
from kvmft.agent.service import Agent
from tests.unit.agent.test_agent_safety import agent

ROOT = Path(__file__).parents[3]
EDA = ROOT / "extensions" / "eda"
PATIENCE = 20.0


def _load() -> Any:
    """As ansible-rulebook does: the file by its path."""
    spec = importlib.util.spec_from_file_location("ft_events", EDA / "plugins/event_source/ft_events.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


ft_events = _load()


class Rulebook:
    """An agent, and a rulebook's queue that its events come to."""

    def __init__(self, tmp_path: Path) -> None:
        self.agent: Agent = agent(tmp_path)
        self.agent.history = History(self.agent)
        self.socket = tmp_path / "agent.sock"
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._server: asyncio.Server | None = None

    def log(self, *reasons: str) -> None:
        for reason in reasons:
            self.agent.events.add("v", "test", reason)

    async def up(self) -> None:
        self._server = await asyncio.start_unix_server(
            lambda reader, writer: serve(reader, writer, self.agent.requests.answer), str(self.socket),
            limit=MAX_LINE,
        )  # fmt: skip

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        self.socket.unlink(missing_ok=True)  # Python 3.13 has the server do it

    @contextlib.asynccontextmanager
    async def following(self, **args: Any) -> AsyncIterator[None]:
        """The source runs meanwhile; its end is that of a rulebook that is stopped."""
        command = f"{sys.executable} -m kvmft --socket {self.socket}"
        given = {"command": command, "retry": 0.1, "eda_feedback_queue": None, **args}
        task = asyncio.create_task(ft_events.main(self.queue, given))
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, name: str, reason: str = "") -> list[dict[str, Any]]:
        """What came, up to the event `name` with `reason` in its reason."""
        came: list[dict[str, Any]] = []
        while True:
            event = (await asyncio.wait_for(self.queue.get(), PATIENCE))["kvmft"]
            came.append(event)
            if event["event"] == name and reason in event["reason"]:
                return came


@pytest.fixture
def rulebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rulebook:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'runtime' / 'src'}")
    return Rulebook(tmp_path)


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events if event["seq"] is not None]


def test_a_broken_connection_costs_no_event_and_brings_none_twice(rulebook: Rulebook) -> None:
    async def run() -> list[dict[str, Any]]:
        rulebook.log("one", "two")
        await rulebook.up()
        async with rulebook.following(start="all"):
            came = await rulebook.until("test", "two")
            rulebook.log("three")
            came += await rulebook.until("test", "three")
            await rulebook.down()
            came += await rulebook.until("unreachable")
            rulebook.log("four", "five")
            await rulebook.up()
            came += await rulebook.until("reachable")
            rulebook.log("six")
            return came + await rulebook.until("test", "six")

    came = asyncio.run(run())
    assert numbers(came) == [1, 2, 3, 4, 5, 6]
    told = [event for event in came if event["seq"] is None]
    assert [event["event"] for event in told] == ["unreachable", "reachable"]
    assert "does not answer" in told[0]["reason"] and told[0]["host"] == "localhost"
    assert came[0] == rulebook.agent.events.read(None, 0, 1000)[0], "as the agent wrote it"


def test_a_rulebook_that_is_started_again_goes_on_where_it_was(rulebook: Rulebook, tmp_path: Path) -> None:
    state = str(tmp_path / "state.json")

    async def run() -> tuple[list[Any], list[Any]]:
        await rulebook.up()
        rulebook.log("before")
        async with rulebook.following(state_file=state):
            # What was before the first start does not come; `new` is from then on.
            while not Path(state).exists():
                await asyncio.sleep(0.05)
            rulebook.log("one", "two")
            first = await rulebook.until("test", "two")
        rulebook.log("while it was down")
        async with rulebook.following(state_file=state):
            rulebook.log("three")
            return first, await rulebook.until("test", "three")

    first, second = asyncio.run(run())
    assert numbers(first) == [2, 3] and numbers(second) == [4, 5]
    assert json.loads(Path(state).read_text()) == {"": 5}


def test_what_the_log_does_not_have_any_more_is_told(
    rulebook: Rulebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "KEEP_BYTES", 2000)
    state = tmp_path / "state.json"
    state.write_text('{"": 2}')
    rulebook.log(*(f"number {number}" for number in range(1, 61)))

    async def run() -> list[dict[str, Any]]:
        await rulebook.up()
        async with rulebook.following(state_file=str(state)):
            return await rulebook.until("test", "number 60")

    missing, *came = asyncio.run(run())
    kept = numbers(came)
    assert missing["event"] == "events_missing" and kept == list(range(kept[0], 61)) and kept[0] > 3
    assert missing["data"] == {"first": 3, "last": kept[0] - 1}


def test_a_log_that_began_anew_is_read_from_its_beginning(rulebook: Rulebook, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"": 900}')
    rulebook.agent.events = EventLog(str(tmp_path / "new" / "events.jsonl"), "a")
    rulebook.log("one", "two")

    async def run() -> list[dict[str, Any]]:
        await rulebook.up()
        async with rulebook.following(state_file=str(state)):
            return await rulebook.until("test", "two")

    missing, *came = asyncio.run(run())
    assert missing["event"] == "events_missing" and missing["data"] == {"after": 900}
    assert numbers(came) == [1, 2]


def test_only_what_was_asked_for_comes_and_an_unprotected_vm_is_told_of(rulebook: Rulebook) -> None:
    async def run() -> list[dict[str, Any]]:
        await rulebook.up()
        async with rulebook.following(
            start="all", vms=["db1"], events="unprotected, protected_again", unprotected_after=1
        ):
            for vm in ("db1", "other"):
                rulebook.agent.events.add(vm, "state", "its host died", state="need_secondary")
            came = await rulebook.until("unprotected")
            rulebook.agent.events.add("db1", "state", "paired", state="protected")
            return came + await rulebook.until("protected_again")

    lost, back = asyncio.run(run())
    assert lost["vm"] == back["vm"] == "db1" and lost["data"]["state"] == "need_secondary"
    assert lost["data"]["seconds"] >= 1 and lost["reason"] == "its host died"


def test_exposure_is_told_once_and_begins_with_the_first_unprotected_state() -> None:
    exposure = ft_events.Exposure(60)
    seen = {"host": "a", "reason": "x"}
    assert not exposure.see("v", "failing_over", seen, 100.0)
    assert not exposure.see("v", "need_secondary", seen, 130.0) and exposure.due(159.0) == []
    ((vm, seconds, last),) = exposure.due(165.0)
    assert (vm, seconds, last["state"]) == ("v", 65.0, "need_secondary")
    assert exposure.due(999.0) == []
    assert exposure.see("v", "protected", seen, 1000.0) and not exposure.see("v", "protected", seen, 1001.0)
    exposure.see("v", "starting", seen, 2000.0)
    exposure.see("v", "suspended", seen, 2010.0)
    assert exposure.due(9999.0) == []
    off = ft_events.Exposure(0)
    off.see("v", "starting", seen, 0.0)
    assert off.due(9999.0) == []


def test_over_ssh_no_password_is_asked_for_and_a_name_is_no_option() -> None:
    options = ft_events.options_of({"command": "sudo -n kvmft", "ssh_args": "-i '/a key'"})
    source = ft_events.Source(None, options)
    line = source._line("-oProxyCommand=x", "events", "--since", "7")
    assert line[:4] == ["ssh", "-T", "-o", "BatchMode=yes"]
    assert line[-5:] == ["-i", "/a key", "--", "-oProxyCommand=x", "sudo -n kvmft events --since 7"]


@pytest.mark.parametrize(("args", "says"), [
    ({"host": "a"}, "has no option host"), ({"start": "old"}, "must be new or all"),
    ({"hosts": [1]}, "must be a list of names"), ({"retry": "x"}, "must be a number of seconds"),
])  # fmt: skip
def test_wrong_options_are_named(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ft_events.options_of(args)


def test_a_state_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(ValueError, match=r"state\.json is no state file of ft_events"):
        ft_events.Cursors(str(tmp_path / "state.json"))


def test_documented_options_are_those_that_there_are() -> None:
    documented = yaml.safe_load(ft_events.DOCUMENTATION)["options"]
    assert {name: each["default"] for name, each in documented.items()} == ft_events.OPTIONS


@pytest.mark.parametrize("path", sorted(EDA.glob("rulebooks/*.yml")), ids=lambda path: path.stem)
def test_rulebooks_use_options_events_and_playbooks_that_there_are(path: Path) -> None:
    source_text = (EDA / "plugins/event_source/ft_events.py").read_text()
    runtime = "".join(each.read_text() for each in (ROOT / "runtime/src/kvmft").rglob("*.py"))
    (ruleset,) = yaml.safe_load(path.read_text())
    (source,) = ruleset["sources"]
    args = source["kvmft.core.ft_events"]
    offered = ft_events.options_of(args)["events"]
    for name in offered:
        assert f'"{name}"' in runtime + source_text, name
    for rule in ruleset["rules"]:
        wanted = re.findall(r'event\.kvmft\.event == "(\w+)"', rule["condition"])
        assert wanted and set(wanted) <= set(offered), rule
        action = rule["action"].get("run_playbook")
        if action:
            namespace, collection, playbook = action["name"].split(".")
            assert (namespace, collection) == ("kvmft", "core")
            assert (ROOT / "playbooks" / f"{playbook}.yml").exists()
