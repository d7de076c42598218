"""The inventory plugin: what agents say becomes groups and variables."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvmft.agent.service import Agent

from .conftest import ROOT
from .test_with_agent import Run, real

__all__ = ["real"]  # the agent itself, as a fixture

Picture = Callable[[dict[str, Any], dict[str, str]], tuple[Any, Any]]
CONNECTED = {"ansible_connection": "local"}
NOT_CONNECTED = {"ansible_ssh_executable": "/bin/false"}


def status(vm: str, role: str, generation: int, **more: Any) -> dict[str, Any]:
    return {"vm": vm, "role": role, "state": "protected", "reason": "", "primary": "a",
            "secondary": "b", "generation": generation, **more}  # fmt: skip


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> Picture:
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / "plugin_utils"))
    found: Picture = importlib.import_module("_cluster").picture
    return found


def test_the_host_that_runs_a_vm_knows_most_of_it(picture: Picture) -> None:
    hosts, vms = picture({
        "a": {"host": "a", "version": "1", "vms": [status("v", "primary", 4)]},
        "b": {"host": "b", "vms": [status("v", "secondary", 4, state="starting")],
              "maintenance": {"on": True}},
        "c": {"host": "c", "vms": [status("v", "stale", 9, primary="b", state="fenced")]},
    }, {})  # fmt: skip
    assert vms["v"].groups == ["ft_vms", "ft_protected", "ft_primary_on_a", "ft_secondary_on_b"]
    assert hosts["a"].variables["ft_primaries"] == ["v"] and hosts["a"].groups == ["ft_hosts"]
    assert hosts["b"].variables["ft_secondaries"] == ["v"] and not hosts["b"].variables["ft_primaries"]
    assert hosts["b"].groups == ["ft_hosts", "ft_maintenance"]
    assert hosts["a"].variables["ft_host"] == {"host": "a", "version": "1"}


def test_of_two_that_say_they_run_it_the_later_generation_is_right(picture: Picture) -> None:
    _hosts, vms = picture({
        "a": {"host": "a", "vms": [status("v", "primary", 4)]},
        "b": {"host": "b", "vms": [status("v", "primary", 5, primary="b", secondary="",
                                          state="need_secondary")]},
    }, {})  # fmt: skip
    assert vms["v"].groups == ["ft_vms", "ft_need_secondary", "ft_primary_on_b"]


def test_a_lost_hosts_vm_is_shown_as_its_secondary_sees_it(picture: Picture) -> None:
    hosts, vms = picture(
        {"b": {"host": "b", "vms": [status("v", "secondary", 4, state="failing_over")]}},
        {"a": "timed out"},
    )
    assert "ft_failing_over" in vms["v"].groups
    assert hosts["a"].groups == ["ft_hosts", "ft_unreachable"]
    assert hosts["a"].variables == {"ft_reachable": False, "ft_reason": "timed out"}


class Inventory:
    """Runs ansible-inventory with a source of the plugin, and sources before it."""

    def __init__(self, tmp_path: Path, collections: Path) -> None:
        self.command = f"{sys.executable} -m kvmft --socket {tmp_path / 'real.sock'} host --json"
        self._path = tmp_path
        self._collections = collections

    def run(self, source: dict[str, Any], *before: str) -> subprocess.CompletedProcess[str]:
        path = self._path / "kvmft.ft_inventory.yml"
        path.write_text(yaml.safe_dump({
            "plugin": "kvmft.core.ft_inventory", "command": self.command, "become": False, **source,
        }))  # fmt: skip
        given = [part for each in (*before, str(path)) for part in ("-i", each)]
        return subprocess.run(
            [str(Path(sys.executable).parent / "ansible-inventory"), *given, "--list"],
            capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self._collections),
                 "ANSIBLE_HOME": str(self._path / "home"), "ANSIBLE_INVENTORY_UNPARSED_FAILED": "1",
                 "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime' / 'src'}"},
        )  # fmt: skip

    def show(self, source: dict[str, Any], *before: str) -> dict[str, Any]:
        done = self.run(source, *before)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def inventory(tmp_path: Path, collections: Path) -> Inventory:
    return Inventory(tmp_path, collections)


def test_what_the_agent_itself_says_becomes_groups_and_variables(
    real: Agent, tmp_path: Path, module: Run, inventory: Inventory
) -> None:
    socket = str(tmp_path / "real.sock")
    real.host.running = True
    module("ft_vm", socket_path=socket, name="v", secondary="b", timeout=20)
    module("ft_host", socket_path=socket, state="maintenance", reason="{{ 1 + 1 }}")
    found = inventory.show({
        "hosts": {"a": CONNECTED, "b": NOT_CONNECTED},
        "compose": {"where": "ft_primary"},
        "groups": {"ft_slow": "ft_state == 'starting'", "ft_good": "ft_state == 'protected'"},
        "keyed_groups": [{"key": "ft_status.generation | string", "prefix": "ft_generation"}],
    })  # fmt: skip
    for group, members in {
        "ft_vms": ["v"], "ft_protected": ["v"], "ft_primary_on_a": ["v"], "ft_secondary_on_b": ["v"],
        "ft_hosts": ["a", "b"], "ft_maintenance": ["a"], "ft_unreachable": ["b"], "ft_good": ["v"],
        "ft_generation_1": ["v"],
    }.items():  # fmt: skip
        assert found[group]["hosts"] == members, group
    assert "ft_slow" not in found and "hosts" not in found.get("ft_need_secondary", {})
    variables = found["_meta"]["hostvars"]
    assert variables["v"]["ft_status"]["role"] == "primary" and variables["v"]["where"] == "a"
    assert variables["a"]["ft_primaries"] == ["v"] and variables["a"]["ft_maintenance"] is True
    reason = variables["a"]["ft_host"]["maintenance"]["reason"]
    assert reason in ("{{ 1 + 1 }}", {"__ansible_unsafe": "{{ 1 + 1 }}"}), "text is no template"


def test_the_hosts_are_those_of_the_inventory_before_it(real: Agent, inventory: Inventory, tmp_path: Path) -> None:
    static = tmp_path / "static.yml"
    static.write_text(yaml.safe_dump({"kvmft_hosts": {
        "hosts": {"a": None}, "vars": {"wanted": "local", "ansible_connection": "{{ wanted }}"}}}))  # fmt: skip
    found = inventory.show({}, str(static))
    assert found["ft_hosts"]["hosts"] == ["a"] and found["kvmft_hosts"]["hosts"] == ["a"]
    assert found["_meta"]["hostvars"]["a"]["ft_reachable"] is True
    refused = inventory.run({"group": "others"}, str(static))
    assert "no earlier inventory source has hosts in the group others" in refused.stderr


def test_a_cached_picture_is_shown_while_no_host_answers(real: Agent, tmp_path: Path, inventory: Inventory) -> None:
    cached = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "hosts": {"a": CONNECTED},
              "cache_connection": str(tmp_path / "cache")}  # fmt: skip
    first = inventory.show(cached)
    inventory.command = "false"
    assert inventory.show(cached)["_meta"]["hostvars"]["a"]["ft_host"] == (
        first["_meta"]["hostvars"]["a"]["ft_host"]
    )
    refused = inventory.run({**cached, "cache": False})
    assert refused.returncode and "No host answered: a: exit status 1" in refused.stderr


def test_a_vm_is_not_taken_for_a_host_of_its_name(
    real: Agent, tmp_path: Path, module: Run, inventory: Inventory
) -> None:
    module("ft_vm", socket_path=str(tmp_path / "real.sock"), name="v")
    refused = inventory.run({"hosts": {"v": CONNECTED}})
    assert refused.returncode and "VM and host have the same name: v. Give vm_prefix" in refused.stderr
    found = inventory.show({"hosts": {"v": CONNECTED}, "vm_prefix": "vm_"})
    assert found["ft_vms"]["hosts"] == ["vm_v"] and found["ft_hosts"]["hosts"] == ["v"]
    assert "ft_vms" not in inventory.show({"hosts": {"v": CONNECTED}, "vms": False})


def test_how_a_host_is_asked(collections: Path) -> None:
    script = (
        "import json\n"
        "from ansible_collections.kvmft.core.plugins.inventory.ft_inventory import command_line\n"
        "variables = {'ansible_host': '-oProxyCommand=x', 'ansible_port': 2222, 'ansible_user': 'op',\n"
        "             'ansible_ssh_common_args': \"-o 'ProxyJump=a b'\"}\n"
        "print(json.dumps([command_line('n', variables, 'kvmft host', become, True)"
        " for become in (False, True)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(collections)})  # fmt: skip
    plain, become = json.loads(done.stdout)
    assert plain == ["ssh", "-T", "-o", "BatchMode=yes", "-p", "2222", "-l", "op", "-o", "ProxyJump=a b",
                     "--", "-oProxyCommand=x", "kvmft host"]  # fmt: skip
    assert become[-1] == (
        "if [ \"$(id -u)\" = 0 ]; then sh -c 'kvmft host'; else sudo -n sh -c 'kvmft host'; fi"
    )
