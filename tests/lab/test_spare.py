"""Three servers: the secondary moves, is tested, and goes to a spare host when its own is lost.

The tests build on one another, in this order, on one guest and one client.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import cli, guests
from tests.lab.lab import Lab
from tests.lab.test_modules import ModuleRunner
from tests.lab.test_protect import answers_of, ledger, status, wait_protected
from tests.unit.plugins.steps import Steps

VM = guests.QUICK


@pytest.fixture(scope="module")
def spare() -> Iterator[Lab]:
    """Three servers, the guest protected on node-a with its secondary on node-b."""
    name = os.environ.get("KVMFT_LAB", "test") + "3"
    made = Lab(name, os.environ.get("KVMFT_RELEASE", "12"), servers=3)
    made.down()
    try:
        made.up()
        cli.site(made, quiet=True)
        guests.start(made, "node-a", VM)
        guests.wait_up(made, VM)
        made.run("node-a", f"kvmft enable {VM.name} --secondary node-b --wait 120")
        yield made
    finally:
        if "KVMFT_KEEP" not in os.environ:
            made.down()


def pid(lab: Lab, host: str) -> str:
    return lab.run(host, f"cat /run/libvirt/qemu/{VM.name}.pid").strip()


def test_the_secondary_moves_and_the_vm_does_not_notice(spare: Lab) -> None:
    before = pid(spare, "node-a")
    client = ledger(spare, VM, 20, "move")
    spare.run("node-a", f"kvmft secondary move {VM.name} node-c --wait 60")
    assert status(spare, "node-a", VM.name)["secondary"] == "node-c"
    wait_protected(spare, "node-a", VM.name)
    again = json.loads(spare.run("node-a", f"kvmft secondary move {VM.name} node-c --json"))
    assert again["changed"] is False
    assert pid(spare, "node-a") == before
    answers_of(client)
    assert VM.name not in spare.run("node-b", "virsh -q list --name")


def test_the_module_moves_it_there_and_back(
    spare: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(ModuleRunner(spare, "node-a", tmp_path), capsys)
    for what, host in (("create", "node-b"), ("modify", "node-c")):
        moved = steps.step(what, "ft_secondary", name=VM.name, host=host, timeout=120)
        assert moved["protected"] and moved["status"]["secondary"] == host


def test_a_host_that_does_not_exist_costs_no_protection(spare: Lab) -> None:
    with pytest.raises(RuntimeError, match="node-z is not another host"):
        spare.run("node-a", f"kvmft secondary move {VM.name} node-z")
    assert status(spare, "node-a", VM.name)["state"] == "protected"


def test_a_killed_secondary_comes_back_by_itself(spare: Lab) -> None:
    before = status(spare, "node-a", VM.name)["generation"]
    client = ledger(spare, VM, 15, "restart")
    spare.run("node-a", f"kvmft secondary restart {VM.name} --wait 60")
    found = wait_protected(spare, "node-a", VM.name)
    assert int(str(found["generation"])) > int(str(before))
    answers_of(client)


def test_a_lost_secondarys_host_is_replaced_by_the_spare(spare: Lab) -> None:
    assert status(spare, "node-a", VM.name)["secondary"] == "node-c"
    client = ledger(spare, VM, 40, "spare")
    spare.power_off("node-c")
    time.sleep(2)
    found = wait_protected(spare, "node-a", VM.name)
    assert found["secondary"] == "node-b"
    spare.power_on("node-c")
    answers_of(client)


def test_after_a_failover_the_spare_protects_it(spare: Lab) -> None:
    client = ledger(spare, VM, 45, "failover")
    time.sleep(2)
    spare.power_off("node-a")
    time.sleep(2)
    found = wait_protected(spare, "node-b", VM.name)
    assert found["secondary"] == "node-c"
    answers_of(client)
    spare.power_on("node-a")
    # It is reached before its agent is there.
    spare.run("node-a", "until kvmft status >/dev/null 2>&1; do sleep 0.5; done", timeout=60)
    until = time.monotonic() + 60
    while (old := status(spare, "node-a", VM.name))["role"] != "stale":
        assert time.monotonic() < until, old
        time.sleep(0.5)
    assert VM.name not in spare.run("node-a", "virsh -q list --name")


def test_allowed_hosts_bind_the_secondary(spare: Lab) -> None:
    spare.run("node-b", f"kvmft enable {VM.name} --allowed-host node-a --secondary node-a --wait 60")
    assert wait_protected(spare, "node-b", VM.name)["secondary"] == "node-a"
    with pytest.raises(RuntimeError, match="not among the allowed hosts"):
        spare.run("node-b", f"kvmft secondary move {VM.name} node-c")
    spare.power_off("node-a")
    until = time.monotonic() + 30
    while "node-a cannot take" not in str((found := status(spare, "node-b", VM.name))["reason"]):
        assert time.monotonic() < until, found
        time.sleep(0.5)
    assert found["state"] == "need_secondary" and "node-c" not in str(found["reason"])
