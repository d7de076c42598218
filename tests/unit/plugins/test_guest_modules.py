"""Modules that reach into a running VM, run whole against a `virsh` that answers as libvirt's does."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import drills
from .test_drills import Run
from .test_drills import local as local_of_drills

guest = drills.util("_guest")
local = local_of_drills
XML = """<domain><devices>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='lo-a'/><model type='virtio'/></interface>
<interface type='network'><mac address='52:54:00:00:00:02'/><source network='default' bridge='virbr0'/></interface>
</devices></domain>"""
INTERFACES = [
    {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
    {"name": "eth0", "hardware-address": "52:54:00:00:00:01", "ip-addresses": [
        {"ip-address": "192.0.2.8", "prefix": 24}, {"ip-address": "192.0.2.9", "prefix": 24},
        {"ip-address": "2001:db8::8", "prefix": 64}, {"ip-address": "fe80::1", "prefix": 64}]},
]  # fmt: skip
VIRSH = '''#!/usr/bin/env python3
import json, sys
state = json.load(open({path!r}))
words = sys.argv[4:]
state["asked"].append(words)
def end(text="", error=""):
    json.dump(state, open({path!r}, "w"))
    sys.stdout.write(text)
    sys.stderr.write("error: " + error + "\\n" if error else "")
    sys.exit(1 if error else 0)
if words[0] == "dumpxml":
    end(state["xml"])
if words[0] == "update-device":
    state["xml_given"] = open(words[2]).read()
    end()
if words[0] == "qemu-monitor-command":
    end()
request = json.loads(words[2])
if not state["agent"]:
    end(error="Guest agent is not responding: QEMU guest agent is not connected")
answer = dict(state["answers"].get(request["execute"]) or {{}})
end(json.dumps({{"return": state["lists"].get(request["execute"], answer)}}))
'''


@pytest.fixture
def virsh(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Put a virsh into PATH; what it was asked and given."""
    folder, path = tmp_path / "bin", tmp_path / "virsh.json"
    folder.mkdir()
    (folder / "virsh").write_text(VIRSH.format(path=str(path)))
    (folder / "virsh").chmod(0o755)
    state: dict[str, Any] = {
        "asked": [], "xml": XML, "agent": True, "lists": {"guest-network-get-interfaces": INTERFACES},
        "answers": {"guest-exec": {"pid": 7}, "guest-ping": {},
                    "guest-exec-status": {"exited": True, "exitcode": 0,
                                          "out-data": base64.b64encode(b"it is up\n").decode()}},
    }  # fmt: skip
    path.write_text(json.dumps(state))

    def look(**changes: Any) -> dict[str, Any]:
        if changes:
            path.write_text(json.dumps({**state, **changes}))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    return look


def test_a_program_is_run_in_the_guest(local: Run, virsh: Callable[..., Any], tmp_path: Path) -> None:
    path = str(tmp_path / "bin")
    found = local("guest_command", {"name": "db1", "command": ["/bin/uptime"], "stdout": "is up"}, path=path)
    assert (found["rc"], found["stdout"]) == (0, "it is up\n")
    assert json.loads(virsh()["asked"][0][2]) == {
        "execute": "guest-exec", "arguments": {"path": "/bin/uptime", "arg": [], "capture-output": True}
    }  # fmt: skip
    found = local("guest_command", {"name": "db1", "command": ["/bin/uptime"], "stdout": "down"}, path=path)
    assert found["failed"] and "printed nothing that matches" in found["msg"]
    found = local("guest_command", {"name": "db1", "command": ["/bin/uptime"], "rc": 3}, path=path)
    assert found["failed"] and found["msg"] == "/bin/uptime ended with 0, not 3."
    before = len(virsh()["asked"])
    assert local("guest_command", {"name": "db1", "command": ["/bin/uptime"]}, True, path)["changed"]
    assert [json.loads(each[2])["execute"] for each in virsh()["asked"][before:]] == ["guest-ping"]


def test_without_an_agent_it_says_what_to_install(local: Run, virsh: Callable[..., Any], tmp_path: Path) -> None:
    virsh(agent=False)
    rows = [{"interface": "eth0", "address": "198.51.100.8/24"}]
    for name, given, check in (("guest_command", {"command": ["true"]}, False), ("guest_network", {"addresses": rows}, True)):
        found = local(name, {"name": "db1", **given}, check, str(tmp_path / "bin"))
        assert found["failed"] and "Install qemu-guest-agent" in found["msg"]


@pytest.mark.parametrize("state", ["paused", "running", "shut off"])
def test_a_checkpoint_in_the_way_is_waited_for_but_a_vm_that_is_off_is_not(state: str) -> None:
    refusals = [guest.GuestError("Requested operation is not valid: domain is not running")] * 3
    asked = []

    class Virsh:
        timeout = 30.0

        def run(self, *words: str) -> str:
            asked.append(words[0])
            if words[0] == "domstate":
                return f"{state}\n"
            if refusals:
                raise refusals.pop()
            return '{"return": {"pid": 7}}'

    agent = guest.Agent(Virsh(), "db1")
    if state == "shut off":
        with pytest.raises(guest.GuestError, match="did not answer guest-exec: .* domain is not running"):
            agent.ask("guest-exec")
        assert asked == ["qemu-agent-command", "domstate"]
    else:
        assert agent.ask("guest-exec") == {"pid": 7}
        assert asked.count("qemu-agent-command") == 4


def test_addresses_are_changed_once(local: Run, virsh: Callable[..., Any], tmp_path: Path) -> None:
    given = {"name": "db1", "addresses": [{"mac": "52:54:00:00:00:01", "address": "198.51.100.8/24", "gateway": "198.51.100.1"}]}
    wanted = ["ip address add 198.51.100.8/24 dev eth0", "ip address del 192.0.2.8/24 dev eth0",
              "ip address del 192.0.2.9/24 dev eth0",
              "ip route replace default via 198.51.100.1 dev eth0"]  # fmt: skip
    for check in (True, False):
        found = local("guest_network", given, check, str(tmp_path / "bin"))
        assert found["changes"] == wanted and found["changed"]
        run = [each for each in virsh()["asked"] if "guest-exec\"" in each[2]]
        assert len(run) == (0 if check else 4)
    have = [{**INTERFACES[1], "ip-addresses": [{"ip-address": "198.51.100.8", "prefix": 24}]}]
    virsh(lists={"guest-network-get-interfaces": have})
    found = local("guest_network", given, False, str(tmp_path / "bin"))
    assert not found["changed"] and found["changes"] == []


def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(guest.GuestError, match="The guest has no interface ens9; it has eth0"):
        guest.address_changes(guest_interfaces(), [{"interface": "ens9", "mac": "", "address": "192.0.2.1/24", "gateway": ""}])


def guest_interfaces() -> list[dict[str, Any]]:
    return [{"name": "eth0", "mac": "52:54:00:00:00:01", "addresses": ["192.0.2.8/24", "2001:db8::8/64", "fe80::1/64"]}]


def test_only_addresses_of_the_same_family_go() -> None:
    row = {"interface": "eth0", "mac": "", "address": "2001:db8:1::8/64", "gateway": "2001:db8:1::1"}
    assert [" ".join(each) for each in guest.address_changes(guest_interfaces(), [row])] == [
        "ip address add 2001:db8:1::8/64 dev eth0", "ip address del 2001:db8::8/64 dev eth0",
        "ip -6 route replace default via 2001:db8:1::1 dev eth0",
    ]  # fmt: skip


def test_interfaces_of_mapped_bridges_alone_are_moved() -> None:
    (change,) = guest.bridge_changes(XML, {"lo-a": "lo-b", "br9": "br8"})
    assert (change["mac"], change["old"], change["new"]) == ("52:54:00:00:00:01", "lo-a", "lo-b")
    assert '<source bridge="lo-b"' in change["xml"] and "virtio" in change["xml"]
    assert guest.bridge_changes(XML.replace("lo-a", "lo-b"), {"lo-a": "lo-b"}) == [], "it is there already"
    with pytest.raises(guest.GuestError, match="No interface of the VM hangs on virbr0; its bridges are: lo-a"):
        guest.bridge_changes(XML, {"virbr0": "br1"})


@pytest.mark.parametrize("persistent", [True, False])
def test_an_interface_is_moved_in_the_definition_too_if_there_is_one_and_announced(persistent: bool) -> None:
    asked = []

    class Virsh:
        def run(self, *words: str) -> str:
            asked.append(words)
            return f"Id:             1\nPersistent:     {'yes' if persistent else 'no'}\n" if words[0] == "dominfo" else ""

    guest.plug(Virsh(), "db1", {"xml": "<interface/>"})
    assert asked[1][:2] == ("update-device", "db1")
    assert asked[1][3:] == (("--live", "--config") if persistent else ("--live",))
    assert asked[2][:2] == ("qemu-monitor-command", "db1") and json.loads(asked[2][2])["execute"] == "announce-self"


def test_a_bridge_that_does_not_exist_is_refused_before_anything(
    local: Run, virsh: Callable[..., Any], tmp_path: Path
) -> None:
    for bridges in ({"lo": "lo"}, {"no-such-a": "no-such-b"}, {"../x": "y"}):
        found = local("guest_network", {"name": "db1", "bridges": bridges}, False, str(tmp_path / "bin"))
        assert found["failed"] and "There is no bridge" in found["msg"] and "kvmft_drill_network_map" in found["msg"]
    assert virsh()["asked"] == []
