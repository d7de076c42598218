"""The drills' playbooks and modules, run whole against fake agents and real services of the VMs."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.pair.harness import wait_for

from . import drills
from .conftest import HOSTS, ROOT, FakeAgent, World, serving
from .test_playbooks import Play, _changed
from .test_playbooks import play as play_of_playbooks

SCHEMA = json.loads((ROOT / "docs" / "drill-report.schema.json").read_text())
SECRET = "canary-4c0d1e"
NAMES = ("dir1", "db1")
SAME = 0.05
"""Seconds by which the clocks of two processes may differ here: one of them goes on by the monotonic clock."""
play = play_of_playbooks
Run = Callable[..., dict[str, Any]]


class Service:
    """A service of a VM: markers over lines (`mark N` is `ok ID`, `read ID` is `got N`), and HTTP."""

    def __init__(self) -> None:
        self.quiet_until = 0.0
        self.lines: list[tuple[float, float, bool]] = []  # when each line came and was answered, and whether it was held
        self.holding = False
        self.marks: list[str] = []
        self.healthy = True
        self.sick = 0  # so many requests still find it sick
        self.tokens: list[str | None] = []
        service = self

        class Line(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    came, service.holding = time.time(), time.monotonic() < service.quiet_until
                    while time.monotonic() < service.quiet_until:
                        time.sleep(0.01)
                    service.lines.append((came, time.time(), service.holding))
                    service.holding = False
                    verb, __, word = line.decode().strip().partition(" ")
                    if verb == "read":
                        found = service.marks[int(word)] if int(word) < len(service.marks) else "nothing"
                        self.wfile.write(f"got {found}\n".encode())
                    else:
                        service.marks.append(word)
                        self.wfile.write(f"ok {len(service.marks) - 1}\n".encode())

        class Web(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.tokens.append(self.headers.get("Authorization"))
                well = service.healthy and service.sick == 0
                service.sick = max(0, service.sick - 1)
                self.send_response(200 if well else 503)
                self.end_headers()
                self.wfile.write(b"all is well" if well else b"warming up")

            def log_message(self, *__: Any) -> None:
                """Say nothing."""

        self.servers = [socketserver.ThreadingTCPServer(("127.0.0.1", 0), Line, False),
                        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web, False)]  # fmt: skip

    @property
    def ports(self) -> list[int]:
        """Of the lines and of the web."""
        return [server.server_address[1] for server in self.servers]

    def __enter__(self) -> Service:
        for server in self.servers:
            server.daemon_threads = True
            server.allow_reuse_address = True
            server.server_bind()
            server.server_activate()
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *__: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


class Host(FakeAgent):
    """The agent of a host that has both VMs: each is a world of its own."""

    def __init__(self, path: Path, host: str, worlds: dict[str, World], services: dict[str, Service]) -> None:
        super().__init__(path, host)
        self.agents = {name: FakeAgent(path, host, world) for name, world in worlds.items()}
        self.services = services
        self.asked: list[tuple[str, str]] = []

    def answer(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """The world of the VM answers, which calls its VM db1 whatever it is."""
        name = str(args.get("vm") or "db1")
        agent = self.agents[name]
        if op == "vm_failover" and not args.get("check"):
            self.asked.append((name, args["target"]))
            self.services[name].quiet_until = time.monotonic() + 0.6
        reply = agent.answer(op, {**args, "vm": "db1"})
        renamed: dict[str, Any] = json.loads(json.dumps(reply).replace('"db1"', json.dumps(name)))
        return renamed


@pytest.fixture
def services() -> Iterator[dict[str, Service]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Service()) for name in NAMES}


@pytest.fixture
def cluster(tmp_path: Path, services: dict[str, Service]) -> Iterator[dict[str, Host]]:
    """Three hosts; both VMs run on node-a, protected by node-b."""
    worlds = {name: World() for name in NAMES}
    for world in worlds.values():
        world.vm.update(state="protected", reason="", desired="enabled", secondary="node-b", generation=1)
    with contextlib.ExitStack() as stack:
        hosts = {host: Host(tmp_path / f"{host}.sock", host, worlds, services) for host in HOSTS}
        for each in hosts.values():
            stack.enter_context(serving(each))
        yield hosts


def groups(services: dict[str, Service], **more: Any) -> list[dict[str, Any]]:
    """The directory before the database; lines are watched, the web is asked."""
    rows = []
    for group, name in (("directory", "dir1"), ("database", "db1")):
        line, web = services[name].ports
        rows.append({"name": group, "vms": [{
            "name": name, "address": "127.0.0.1",
            "health": [{"type": "http", "url": f"http://127.0.0.1:{web}/up?key={SECRET}", "body": "all is well",
                        "headers": {"Authorization": f"Bearer {SECRET}"}, "retries": 2, "delay": 0}],
            "probe": {"type": "line", "port": line, "send": "mark {n}", "expect": "^ok (?P<id>[0-9]+)$",
                      "verify_send": "read {id}", "verify_expect": "^got {n}$", "timeout_ms": 2000},
            **more,
        }]})  # fmt: skip
    return rows


def reported(folder: Path) -> tuple[dict[str, Any], str]:
    """The one report's data and page."""
    (path,) = (folder / "drill-reports").glob("*.json")
    report: dict[str, Any] = json.loads(path.read_text())
    jsonschema.validate(report, SCHEMA)
    return report, path.with_suffix(".html").read_text()


def vm(cluster: dict[str, Host], name: str) -> dict[str, Any]:
    return cluster["node-a"].agents[name].vm


@pytest.mark.usefixtures("cluster")
def test_groups_are_drilled_in_their_order_and_reported(
    play: Play, cluster: dict[str, Host], services: dict[str, Service], tmp_path: Path
) -> None:
    extra = tmp_path / "extra.yml"
    extra.write_text("- name: See where it is\n  ansible.builtin.assert:\n    that: kvmft_vm_host in groups['kvmft_hosts'] and "
                     "kvmft_vm.name == 'dir1' and kvmft_vm_address == '127.0.0.1' and kvmft_check_vars.word == 'x'\n")  # fmt: skip
    rows = groups(services)
    extra.write_text(extra.read_text() + "- name: Succeed at the third try\n  ansible.builtin.shell:\n"
                     f"    cmd: echo >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -ge 3\n  changed_when: false\n")  # fmt: skip
    rows[0]["vms"][0]["health"].append({"type": "tasks", "file": str(extra), "vars": {"word": "x"}, "retries": 2, "delay": 0})
    code, output = play("drill_unplanned", "-vvv", kvmft_drill_groups=rows,
                        kvmft_drill_objectives={"rto_ms": 5000, "rpo_ms": 0})  # fmt: skip
    assert code == 0 and _changed(output) == 2, output[-3000:]
    assert cluster["node-b"].asked == [("dir1", "node-b"), ("db1", "node-b")]
    report, page = reported(tmp_path)
    assert SECRET not in output + page + json.dumps(report) and f"Bearer {SECRET}" in services["db1"].tokens
    assert report["outcome"] == "passed" and report["groups"][0] == {"name": "directory", "vms": ["dir1"]}
    first, second = report["vms"]
    assert first["legs"][0]["protected_ms"] < second["legs"][0]["ordered_ms"]
    for each in report["vms"]:
        rto = each["results"]["rto_ms"]
        held = sum(answered - came for came, answered, quiet in services[each["name"]].lines if quiet)
        assert rto["source"] == "probe" and 1000 * (held - SAME) < rto["value_ms"] < 5000
        assert each["results"]["rpo_ms"]["value_ms"] == 0 and each["probe"]["markers"]["read_back"] > 10
        assert [row["state"] for row in each["segments"]] == ["protected", "running"]
        assert each["after"]["primary"] == "node-b"
    assert [(row["when"], row["type"]) for row in first["checks"]] == [
        (when, kind) for when in ("before", "running", "protected") for kind in ("http", "tasks")
    ]  # fmt: skip
    assert [row["attempts"] for row in first["checks"] if row["type"] == "tasks"] == [3, 1, 1]
    assert [host["host"] for host in report["hosts"]] == list(HOSTS)
    assert "dir1: ran on node-a, runs on node-b now and is protected by node-a" in output
    assert "dir1: objective rto_ms 5000: met" in output


def test_a_vm_that_is_not_healthy_stops_the_drill_before_the_next(
    play: Play, cluster: dict[str, Host], services: dict[str, Service], tmp_path: Path
) -> None:
    def breaks(op: str, args: dict[str, Any]) -> dict[str, Any]:
        if op == "vm_failover" and not args.get("check"):
            services["dir1"].healthy = False
        return Host.answer(cluster["node-b"], op, args)

    cluster["node-b"].answer = breaks  # type: ignore[method-assign]
    code, output = play("drill_planned", kvmft_drill_groups=groups(services), kvmft_back=True)
    assert code != 0 and "VM dir1 is not healthy (where it runs now): http http://127.0.0.1:" in output, output[-3000:]
    assert "failed after 3 tries: the status is 503, not 200" in output
    report, page = reported(tmp_path)
    assert report["outcome"] == "aborted" and report["reason"].endswith("All VMs of the drill are protected.")
    assert [len(each["legs"]) for each in report["vms"]] == [1, 0]
    assert report["vms"][0]["legs"][0]["protected_ms"] is not None, "its protection was waited for"
    assert vm(cluster, "db1")["primary"] == "node-a" and vm(cluster, "dir1")["state"] == "protected"
    assert "The drill stopped before this VM" in page


def test_a_file_stops_the_drill_before_the_next_vm(
    play: Play, cluster: dict[str, Host], services: dict[str, Service], tmp_path: Path
) -> None:
    stop = tmp_path / "stop-it"
    touch = tmp_path / "touch.yml"
    touch.write_text(f"- name: Stop\n  ansible.builtin.file:\n    path: {stop}\n    state: touch\n    mode: '0600'\n"
                     f"  changed_when: false\n  when: kvmft_drill_when == 'protected'\n")  # fmt: skip
    rows = groups(services, health=[{"type": "tasks", "file": str(touch)}], probe=False)
    code, output = play("drill_planned", kvmft_drill_groups=rows, kvmft_drill_abort_file=str(stop))
    assert code != 0 and _changed(output) == 1, "without kvmft_back it stays where it went"
    assert "dir1: node-a -> node-b, stood still for at most" in output and "dir1: node-b" not in output
    assert f"The drill was stopped before VM db1, because somebody made the file {stop}." in output
    report, __ = reported(tmp_path)
    assert report["outcome"] == "aborted" and [len(each["legs"]) for each in report["vms"]] == [1, 0]
    assert vm(cluster, "dir1")["primary"] == "node-b" and vm(cluster, "db1")["primary"] == "node-a"


@pytest.mark.parametrize("skip", [False, True])
def test_a_test_drill_says_in_one_sentence_that_it_is_not_offered(
    play: Play, cluster: dict[str, Host], services: dict[str, Service], tmp_path: Path, skip: bool
) -> None:
    code, output = play("drill_test", kvmft_drill_groups=groups(services), kvmft_drill_skip=skip)
    assert code == (0 if skip else 2), output[-3000:]
    assert ("NOT TESTED" in output) is skip
    assert "Test failovers are not offered by kvmft on node-b, so that nothing was tested and nothing was changed" in output
    assert _changed(output) == 0 and not (tmp_path / "drill-reports").exists()
    assert all(not agent.changes() for host in cluster.values() for agent in host.agents.values())


def test_a_test_drill_where_it_is_offered_leaves_the_vm_where_it_is(
    play: Play, cluster: dict[str, Host], services: dict[str, Service], tmp_path: Path
) -> None:
    def offers(op: str, args: dict[str, Any]) -> dict[str, Any]:
        if op != "vm_failover":
            return Host.answer(cluster["node-b"], op, args)
        cluster["node-b"].asked.append((args["mode"], args["target"]))
        return {"ok": True, "result": {"changed": False, "status": cluster["node-b"].agents["db1"].status()}}

    cluster["node-b"].answer = offers  # type: ignore[method-assign]
    code, output = play("drill_test", vm="db1", kvmft_drill_groups=groups(services), kvmft_drill_objectives={"rto_ms": 1})
    assert cluster["node-b"].asked == [("test", "node-b")] * 2, output[-3000:]
    report, __ = reported(tmp_path)
    assert [each["name"] for each in report["vms"]] == ["db1"], "vm chooses one of the groups'"
    assert report["vms"][0]["after"]["primary"] == "node-a"
    assert code != 0 and report["outcome"] == "failed" and "the objective is 1 ms" in output, "a missed objective fails it"
    assert report["vms"][0]["results"]["rpo_ms"]["value_ms"] == 0
    assert [each["when"] for each in report["vms"][0]["checks"]] == ["before", "protected"]


@pytest.mark.parametrize(("given", "said"), [
    ({"kvmft_drill_groups": [{"name": "x", "vms": [{"name": "a", "helth": []}]}]}, "kvmft_drill_groups[0].vms[0].helth is not known"),
    ({}, "No VM is named. Give -e vm=NAME"),
])  # fmt: skip
def test_wrong_input_is_one_clear_error(play: Play, given: dict[str, Any], said: str) -> None:
    code, output = play("drill_planned", **given)
    assert code != 0 and said in output


# -- the modules by themselves ------------------------------------------------------------------------


@pytest.fixture
def local(collections: Path, tmp_path: Path) -> Run:
    """Run a module of the controller; its result."""

    def run(name: str, params: dict[str, Any], check: bool = False, path: str = "") -> dict[str, Any]:
        given = {**params, "_ansible_check_mode": check, "_ansible_remote_tmp": str(tmp_path)}
        starter = (
            "import sys\nfrom ansible.module_utils import basic\n"
            "basic._ANSIBLE_ARGS = sys.argv[1].encode()\nbasic._ANSIBLE_PROFILE = 'legacy'\n"
            f"from ansible_collections.kvmft.core.plugins.modules import {name}\n{name}.main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", starter, json.dumps({"ANSIBLE_MODULE_ARGS": given})],
            capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": str(collections), "PATH": f"{path}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def outside(**check: Any) -> dict[str, Any]:
    """A health check, filled in."""
    made: dict[str, Any] = drills.util("_drill_plan").plan(
        vms=[{"name": "a", "address": "127.0.0.1", "probe": False, "health": {"retries": 0, **check}}]
    )[0]["checks"][0]
    return made


def test_checks_from_outside_succeed_and_fail_with_the_reason(local: Run, services: dict[str, Service]) -> None:
    line, web = services["db1"].ports
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as shut:
        closed = shut.server_address[1]
    for given, ok, detail in (
        ({"type": "tcp", "port": line}, True, "accepts connections"),
        ({"type": "tcp", "port": closed}, False, "Connection refused"),
        ({"type": "http", "port": web}, True, "the status is 200"),
        ({"type": "http", "port": web, "status": [204, 206]}, False, "the status is 200, not 204 or 206"),
        ({"type": "http", "port": web, "body": "ready"}, False, "the body does not match"),
        ({"type": "http", "port": line, "timeout": 0.3}, False, "127.0.0.1"),
        ({"type": "icmp"}, True, "answers a ping"),
    ):
        found = local("drill_check", {"check": outside(**given), "hosts": ["127.0.0.1"]})
        assert (found["ok"], bool(found.get("failed"))) == (ok, not ok), found
        assert detail in found["detail"] and found["attempts"] == 1


def test_one_of_several_addresses_must_answer(local: Run, services: dict[str, Service]) -> None:
    check = outside(type="tcp", port=services["db1"].ports[0])
    found = local("drill_check", {"check": check, "hosts": ["127.0.0.99", "127.0.0.1"]})
    assert found["ok"] and found["detail"].startswith("127.0.0.1:")
    assert not local("drill_check", {"check": check, "hosts": ["127.0.0.99"]})["ok"]


def test_a_check_is_tried_until_it_succeeds(local: Run, services: dict[str, Service]) -> None:
    services["db1"].sick = 4
    check = outside(type="http", port=services["db1"].ports[1], retries=4, delay=0.1)
    found = local("drill_check", {"check": check, "hosts": ["127.0.0.1"]})
    assert found["ok"] and found["attempts"] == 5 and not found["changed"]


def test_a_prober_sees_a_silence_and_finds_lost_markers(local: Run, services: dict[str, Service], tmp_path: Path) -> None:
    service, folder = services["db1"], tmp_path / "watch"
    folder.mkdir()
    rows = groups(services)[1]["vms"]
    probe = drills.util("_drill_plan").plan(vms=rows)[0]["probe"]
    begun = time.time()

    def trouble() -> None:
        """0.7 s of silence; the eight newest markers are gone after it, and others take their places."""
        wait_for("markers", lambda: len(service.marks) >= 15, 60)
        service.quiet_until = math.inf
        wait_for("a marker that waits", lambda: service.holding, 60)
        time.sleep(0.7)
        del service.marks[-8:]
        left = len(service.marks)
        service.quiet_until = 0.0
        wait_for("other markers", lambda: len(service.marks) >= left + 20, 60)
        assert local("drill_probe", {"state": "stopped", "directory": str(folder)})["now"] >= begun

    other = threading.Thread(target=trouble)
    other.start()
    found = local("drill_probe", {"directory": str(folder), "probes": {"db1": probe}, "seconds": 60})
    other.join()
    seen = found["probes"]["db1"]
    (number,) = [number for number, line in enumerate(service.lines) if line[2]]
    (__, before, __), (came, answered, __), (after, __, __) = service.lines[number - 1 : number + 2]
    ((a, b),) = [each for each in seen["silences"] if each[0] < answered and before < each[1]]
    assert before - SAME < a < came + SAME and answered - SAME < b < after + SAME, "as the service saw it"
    assert seen["broken"] == 0 and begun < a < b < found["now"] and answered - came >= 0.7
    assert seen["markers"]["lost"] == 8 and 250 < seen["markers"]["lost_ms"]
    assert seen["attempts"] == seen["answers"] and not found["changed"]


def test_a_prober_follows_a_vm_to_its_other_address(local: Run, services: dict[str, Service], tmp_path: Path) -> None:
    probe = drills.util("_drill_plan").plan(vms=[{
        "name": "db1", "address": "127.0.0.99", "probe": {"type": "tcp", "port": services["db1"].ports[0]},
        "readdress": {"node-b": {"interface": "eth0", "address": "127.0.0.1/8"}}}])[0]["probe"]  # fmt: skip
    seen = local("drill_probe", {"directory": str(tmp_path), "probes": {"db1": probe}, "seconds": 2})["probes"]["db1"]
    assert seen["answers"] >= 3 and seen["answers"] >= seen["attempts"] - 2 and seen["markers"] is None


def test_a_prober_ends_with_its_directory(local: Run, tmp_path: Path) -> None:
    gone = local("drill_probe", {"directory": str(tmp_path / "no")})
    assert gone["failed"] and "ansible.builtin.tempfile" in gone["msg"]


def test_a_report_that_cannot_be_written_is_known_before_the_drill(local: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for check in (False, True):
        found = local("drill_report", {"directory": str(tmp_path / "file" / "below")}, check)
        assert found["failed"] and "kvmft_drill_report_dir" in found["msg"], found
    assert not local("drill_report", {"directory": str(tmp_path / "new")}, True).get("failed")
    assert not (tmp_path / "new").exists()


def test_a_report_is_written_once_and_only_its_group_may_read_it(local: Run, tmp_path: Path) -> None:
    found = local("drill_report", {"directory": str(tmp_path / "new"), "drill": drills.raw()})
    assert found["changed"] and found["outcome"] == "passed" and "RTO" in "".join(found["summary"])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        Path(found["html"]).name, Path(found["json"]).name
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o777 == 0o640 for path in (tmp_path / "new").iterdir())
    dry = local("drill_report", {"directory": str(tmp_path / "dry"), "drill": drills.raw()}, True)
    assert dry["outcome"] == "passed" and not dry["changed"] and not (tmp_path / "dry").exists()
