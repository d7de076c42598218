"""Every module on a real pair, as Ansible runs it over SSH: each step of its life, also in check mode;
then what inventory and event source say of it. The tests build on one another, on the quick guest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import guests
from tests.lab.lab import ROOT, Lab
from tests.lab.test_protect import status
from tests.unit.plugins.steps import Steps

VM = guests.QUICK.name


class ModuleRunner:
    """Runs a module on `host`, one task per flag that says whether in check mode."""

    def __init__(self, lab: Lab, host: str, folder: Path) -> None:
        self._lab, self._host, self._folder = lab, host, folder

    def __call__(self, name: str, checks: list[bool], params: dict[str, Any]) -> list[dict[str, Any]]:
        results, play = self._folder / "results.json", self._folder / "play.yml"
        tasks: list[dict[str, Any]] = [
            {"name": f"Run {name}", f"kvmft.core.{name}": params, "check_mode": check, "diff": True,
             "register": f"result_{number}", "ignore_errors": True}
            for number, check in enumerate(checks)
        ]  # fmt: skip
        names = ", ".join(f"result_{number}" for number in range(len(checks)))
        tasks.append({"name": "Keep the results", "delegate_to": "localhost", "ansible.builtin.copy": {
            "content": "{{ [" + names + "] | to_json }}", "dest": str(results), "mode": "0600"}})  # fmt: skip
        play.write_text(yaml.safe_dump([
            {"name": "Steps", "hosts": self._host, "gather_facts": False, "tasks": tasks}
        ]))  # fmt: skip
        self._lab.playbook(str(play), timeout=600)
        found: list[dict[str, Any]] = json.loads(results.read_text())
        return found


@pytest.fixture
def on(lab: Lab, quick: guests.Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`on(host)`: the steps of modules that run there."""
    return lambda host: Steps(ModuleRunner(lab, host, tmp_path), capsys)


@pytest.fixture(scope="module", autouse=True)
def as_before(lab: Lab, quick: guests.Guest) -> Iterator[None]:
    """Afterwards the guest is as it was: unprotected, on node-a."""
    yield
    for host in ("node-a", "node-b"):
        lab.run(host, "kvmft maintenance off")
        known = json.loads(lab.run(host, "kvmft status --json"))
        if "primary" in [each["role"] for each in known if each["vm"] == VM]:
            lab.run(host, f"kvmft disable {VM}")
    if VM not in lab.run("node-a", "virsh -q list --name"):
        lab.run("node-b", f"virsh destroy {VM}", check=False)
        guests.start(lab, "node-a", quick)
        guests.wait_up(lab, quick)


def test_ft_vm_protects_and_changes_a_running_guest(on: Any) -> None:
    made = on("node-a").step("create", "ft_vm", name=VM, options={"interval_ms": 20}, timeout=300)
    assert made["protected"] and made["status"]["secondary"] == "node-b"
    changed = on("node-a").step("modify", "ft_vm", name=VM, options={"interval_ms": 10}, timeout=300)
    assert changed["status"]["options"]["interval_ms"] == 10
    (seen,) = on("node-a").same("ft_vm_info", name=VM)["vms"]
    assert seen["state"] == "protected" and seen["epoch"] > 0


def test_ft_secondary_has_it_come_back_after_a_crash(on: Any) -> None:
    """With two servers it has nowhere else to go; `test_spare` moves it."""
    (before,) = on("node-a").same("ft_vm_info", name=VM)["vms"]
    tested = on("node-a").step("restart", "ft_secondary", True, name=VM, state="restarted", timeout=300)
    assert tested["protected"] and tested["status"]["generation"] > before["generation"]
    assert not on("node-a").same("ft_secondary", name=VM, host="node-b")["changed"]


def test_ft_failover_there_and_back(lab: Lab, on: Any, quick: guests.Guest) -> None:
    there = on("node-b").step("planned", "ft_failover", name=VM, target="node-b", mode="planned",
                              wait_protected=True, timeout=300)  # fmt: skip
    assert there["failover"]["kind"] == "planned" and there["failover"]["since_loss_ms"] is None
    assert there["status"]["primary"] == "node-b" and there["status"]["secondary"] == "node-a"
    back = on("node-a").step("unplanned", "ft_failover", name=VM, target="node-a", mode="unplanned",
                             wait_protected=True, timeout=300)  # fmt: skip
    assert back["failover"]["kind"] == "ordered" and back["protected"]
    guests.wait_up(lab, quick)


def test_ft_host_keeps_new_secondaries_away_and_costs_no_protection(lab: Lab, on: Any) -> None:
    begun = on("node-b").step("create", "ft_host", state="maintenance", reason="new disks")
    assert begun["secondaries"] == [VM] and begun["primaries"] == [] and not begun["empty"]
    on("node-b").step("modify", "ft_host", state="maintenance", reason="new memory")
    info = on("node-a").same("ft_host_info")["host"]
    assert info["peers"]["node-b"]["maintenance"] and not info["maintenance"]["on"]
    assert status(lab, "node-a", VM)["state"] == "protected"
    removed = on("node-a").step("remove", "ft_vm", name=VM, state="disabled", timeout=300)
    assert removed["status"]["state"] == "disabled" and removed["status"]["running"]
    lab.run("node-b", "systemctl restart kvmft-agent && timeout 30 sh -c "
            "'until kvmft host > /dev/null 2>&1; do sleep 0.3; done'")  # fmt: skip
    reasons = json.loads(lab.run("node-a", f"kvmft check {VM} --json", check=False))
    assert reasons["code"] == "maintenance" and "(new memory)" in reasons["message"]
    ended = on("node-b").step("remove", "ft_host", state="active")
    assert ended["empty"] and lab.run("node-a", f"kvmft check {VM} --json") == ""


def test_the_inventory_plugin_groups_hosts_and_vms_over_ssh(lab: Lab, tmp_path: Path) -> None:
    lab.run("node-a", f"kvmft enable {VM} --wait 120")
    source = tmp_path / "lab.ft_inventory.yml"
    source.write_text("plugin: kvmft.core.ft_inventory\n")
    done = subprocess.run(
        lab.inside(str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(lab.inventory),
                   "-i", str(source), "--list"),
        env=lab.ansible_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    for group, members in {
        "ft_hosts": ["node-a", "node-b"], "ft_protected": [VM], "ft_primary_on_node_a": [VM],
        "ft_secondary_on_node_b": [VM],
    }.items():  # fmt: skip
        assert found[group]["hosts"] == members, (group, done.stderr)
    assert found["_meta"]["hostvars"][VM]["ft_status"]["arbiter"] == {"type": "etcd", "ok": True}


def test_the_event_source_tells_the_whole_story_over_ssh(lab: Lab) -> None:
    prefix = lab.ssh_command("node-a")
    ssh_args = " ".join(prefix[prefix.index("ssh") + 1 : -1])
    args = {"hosts": [f"root@{lab.address(host)}" for host in ("node-a", "node-b")], "start": "all",
            "vms": [VM], "ssh_args": ssh_args}  # fmt: skip
    program = ROOT / "extensions/eda/plugins/event_source/ft_events.py"
    source = subprocess.Popen(lab.inside(sys.executable, str(program), json.dumps(args)),
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    wanted = [json.loads(line) for host in ("node-a", "node-b")
              for line in lab.run(host, f"kvmft events --vm {VM} --json --limit 20000").splitlines()]  # fmt: skip
    assert {"activated", "enabled"} <= {event["event"] for event in wanted}
    came: list[dict[str, Any]] = []
    assert source.stdout is not None
    try:
        while not all(event in came for event in wanted):
            came.append(json.loads(source.stdout.readline())["kvmft"])
    finally:
        source.kill()
        source.communicate()
    numbered = [(event["host"], event["seq"]) for event in came]
    assert len(numbered) == len(set(numbered)), "an event came twice"
