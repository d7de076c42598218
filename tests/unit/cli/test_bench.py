"""`kvmft bench` against a real agent over its control socket: figures that are right, and no secret in the bundle."""

from __future__ import annotations

import asyncio
import json
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.history import History
from kvmft.agent.lines import serve
from kvmft.agent.requests import Requests
from kvmft.agent.service import Agent
from kvmft.cli.main import main
from kvmft.report import bounds, evidence
from tests.unit.agent.test_epochs import Worker, protected

CANARY = "canary-5f1d"
HELD = 1514


class Busy(Worker):
    """Between any two questions ten epochs pass, of 3 ms and 250 pages. After `leaves_after` questions it is another."""

    leaves_after = 1_000_000

    def send(self, **message: Any) -> None:
        if len(self.sent) == self.leaves_after:
            self.vm._worker_role = "claim"
        for __ in range(10):
            now = time.monotonic()
            self.stats.captured(now, 0.003, 250)
            self.stats.committed(now + 0.001)
        super().send(**message)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Agent, str]]:
    """An agent whose VM `v` is protected, and its socket; canaries are wherever the agent has something secret."""
    a, vm, __ = protected(tmp_path)
    vm.worker = Busy(vm)
    key = tmp_path / "host.key"
    key.write_text(f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n")
    object.__setattr__(a.config.tls, "key", str(key))
    a.config.arbiter["password"] = CANARY
    vm.state.session = CANARY
    vm.figures = {"held_bytes": HELD, "guest_clock_loss_ppm": 1234, "session": CANARY}
    vm.state.options = {"interval_ms": 40}
    a.events.add("v", "claim_sent", "asks the arbiter", nonce=CANARY, session=CANARY, generation=7)
    a.events.add("other", "state", f"of another VM {CANARY}")
    a.history = History(a)
    real = Requests.answer

    async def request(self: Requests, op: str, args: dict[str, Any]) -> Any:
        if op == "host_info":  # it needs a libvirt
            return {"host": "a", "version": "1.0", "qemu": "10.0", "libvirt": "11.3", "peers": {"b": {}},
                    "arbiter": {"token": CANARY}}  # fmt: skip
        return await real(self, op, args)

    monkeypatch.setattr(Requests, "answer", request)
    monkeypatch.setattr(evidence, "POLL", 0.1)
    monkeypatch.setattr(bounds, "CIPHER_SECONDS", 1)
    path = str(tmp_path / "control.sock")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> asyncio.AbstractServer:
        return await asyncio.start_unix_server(lambda r, w: serve(r, w, a.requests.answer), path)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(5)
    yield a, path

    async def end() -> None:
        server.close()
        await asyncio.sleep(0.02)

    asyncio.run_coroutine_threadsafe(end(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Outside(HTMLParser):
    """Whatever in a page would be fetched, or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object") or any(name in ("src", "href") for name, __ in attrs):
            self.found.append(tag)


def bench(path: str, *arguments: str) -> int:
    return main(["--socket", path, "bench", "v", "--seconds", "1", *arguments])


def test_the_bundle(served: tuple[Agent, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as guest:
        out = tmp_path / "bundle"
        assert bench(served[1], "--out", str(out), "--ping", f"127.0.0.1:{guest.getsockname()[1]}") == 0
    assert sorted(each.name for each in out.iterdir()) == ["bench.html", "bench.json", "events.jsonl"]
    found = json.loads((out / "bench.json").read_text())
    epochs = found["epochs"]
    assert epochs["epochs"] >= 50 and set(epochs["pause_ms"]) == {3.0} and set(epochs["pages"]) == {250.0}
    assert set(epochs["held_bytes"]) == {HELD} and epochs["missed"] == 0 and epochs["interruptions"] == []
    assert found["memcpy"]["pages"] == 250 and len(found["memcpy"]["ms"]) == evidence.COPIES
    assert found["cipher"]["bytes_s"] > 1e6 and found["log"] is None and len(found["ping"]["ms"]) >= 5
    assert found["after"]["options"] == {"interval_ms": 40} and found["host"]["qemu"] == "10.0" and found["host"]["cores"]
    page = (out / "bench.html").read_text()
    seen = Outside()
    seen.feed(page)
    assert seen.found == [] and "prefers-color-scheme: dark" in page and page.count("<svg") == 5
    assert "TCP connect" in page and "1,234 ppm" in page and "asks the arbiter" in page
    said = capsys.readouterr()
    assert "Pauses" in said.out and f"Written to {out}" in said.out and "for 1 s" in said.err


def test_no_secret_is_in_the_bundle(served: tuple[Agent, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle.tar.gz"
    assert bench(served[1], "--out", str(out), "--json") == 0
    with tarfile.open(out) as archive:
        names = archive.getnames()
        texts = [archive.extractfile(name).read().decode() for name in names]  # type: ignore[union-attr]
    assert sorted(names) == ["bundle/bench.html", "bundle/bench.json", "bundle/events.jsonl"]
    events = [json.loads(line) for line in texts[names.index("bundle/events.jsonl")].splitlines()]
    assert events[0]["data"] == {"generation": 7} and all(each["vm"] == "v" for each in events)
    for text in (*texts, capsys.readouterr().out):
        assert CANARY not in text and "PRIVATE KEY" not in text


def test_nothing_of_the_vm_changes(served: tuple[Agent, str], tmp_path: Path) -> None:
    vm = served[0]._vms["v"]
    before = vm.state.__dict__.copy(), vm.shown
    assert bench(served[1], "--out", str(tmp_path / "bundle")) == 0
    assert (vm.state.__dict__, vm.shown) == before
    assert {each["cmd"] for each in vm.worker.sent} == {"epochs"}  # type: ignore[union-attr]


def test_a_part_that_fails_is_told_and_the_rest_is_there(served: tuple[Agent, str], tmp_path: Path) -> None:
    async def refused(args: dict[str, Any]) -> dict[str, Any]:
        raise evidence.KvmftError("busy", "a is measuring the FT log already.", "Measure again.")

    served[0].log_speed = type("Speed", (), {"measure": staticmethod(refused)})()  # type: ignore[assignment]
    assert bench(served[1], "--out", str(tmp_path / "bundle"), "--log") == 0
    found = json.loads((tmp_path / "bundle" / "bench.json").read_text())
    assert "measuring the FT log already" in found["log"]["error"] and found["epochs"]["epochs"] > 0
    assert "measuring the FT log already" in (tmp_path / "bundle" / "bench.html").read_text()


def test_unprotected_there_is_only_what_was_asked_for(
    served: tuple[Agent, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vm = served[0]._vms["v"]
    vm.shown = ("need_secondary", "b does not answer")
    assert bench(served[1], "--out", str(tmp_path / "bundle")) == 1
    assert "b does not answer" in capsys.readouterr().err and not (tmp_path / "bundle").exists()
    with socket.create_server(("127.0.0.1", 0)) as guest:
        assert bench(served[1], "--out", str(tmp_path / "b2"), "--ping", f"127.0.0.1:{guest.getsockname()[1]}") == 0
    found = json.loads((tmp_path / "b2" / "bench.json").read_text())
    assert found["epochs"] is None and found["memcpy"] is None and found["ping"]["ms"]
    assert "Pauses" in (tmp_path / "b2" / "bench.html").read_text()


def test_the_secondarys_host_names_the_other(served: tuple[Agent, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served[0]._vms["v"].state.role = "secondary"
    assert bench(served[1], "--out", str(tmp_path / "bundle")) == 1
    assert "Measure on b" in capsys.readouterr().err


def test_an_interruption_is_part_of_the_evidence(served: tuple[Agent, str], tmp_path: Path) -> None:
    served[0]._vms["v"].worker.leaves_after = 3  # type: ignore[union-attr]
    assert bench(served[1], "--out", str(tmp_path / "bundle")) == 0
    found = json.loads((tmp_path / "bundle" / "bench.json").read_text())
    assert found["epochs"]["epochs"] > 0 and "not protected from here" in found["epochs"]["interruptions"][0]
    assert "not protected from here" in (tmp_path / "bundle" / "bench.html").read_text()


@pytest.mark.parametrize("out", ["there", "missing/bundle"])
def test_a_place_that_cannot_be_is_said_before_anything_is_measured(
    served: tuple[Agent, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "there").mkdir()
    assert bench(served[1], "--out", str(tmp_path / out)) == 1
    said = capsys.readouterr().err
    assert "--out" in said and "Measures" not in said
    assert served[0]._vms["v"].worker.sent == []  # type: ignore[union-attr]
