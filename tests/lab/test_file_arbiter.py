"""Two servers and a directory that both mount: site.yml, a power cut, and a mount that is missing.

A lab of its own, without a witness that runs etcd. The tests build on one another, in this order.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
import yaml

from tests.lab import guests
from tests.lab.lab import ROOT, Lab
from tests.lab.mounts import share
from tests.lab.test_protect import answers_of, ledger, status, wait_protected

DIRECTORY = "/srv/kvmft-arbiter"
SITE = str(ROOT / "playbooks" / "site.yml")


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    """The lab; its inventory says that the arbiter is a directory."""
    lab = Lab(f"{os.environ.get('KVMFT_LAB', 'test')}f", os.environ.get("KVMFT_RELEASE", "12"))
    lab.down()
    try:
        lab.up()
        inventory = yaml.safe_load(lab.inventory.read_text())
        inventory["all"]["vars"]["kvmft_arbiter"] = {"type": "file", "directory": DIRECTORY}
        inventory["all"]["children"]["kvmft_arbiter"] = {"hosts": {}}
        lab.inventory = lab.inventory.with_name("file-arbiter.yml")
        lab.inventory.write_text(yaml.safe_dump(inventory))
        yield lab
    finally:
        if "KVMFT_KEEP" not in os.environ:
            lab.down()


def arbiter(lab: Lab, host: str) -> dict[str, object]:
    """What `kvmft doctor` says of the arbiter."""
    found = json.loads(lab.run(host, "kvmft doctor --json || true"))
    return next(dict(each) for each in found if each["probe"] == "arbiter")


def test_without_the_mount_site_changes_nothing_and_says_why(shared: Lab) -> None:
    shared.run("node-a", f"mkdir -p {DIRECTORY}")
    with pytest.raises(RuntimeError) as caught:
        shared.playbook(SITE)
    told = re.sub(r"\s+", " ", str(caught.value))
    assert re.search(r"2 finding\(s\)(, \d+ warning\(s\))?; nothing was changed", told), told
    assert f"directory_not_mounted node-a the directory {DIRECTORY} of the arbiter is on the root file system" in told
    assert f"directory_missing node-b the directory {DIRECTORY} of the arbiter does not exist" in told


def test_site_sets_the_directory_up_once(shared: Lab) -> None:
    share(shared, shared.build / "shared", DIRECTORY, ("node-a", "node-b"))
    shared.playbook(SITE)
    output = shared.playbook(SITE)
    assert set(re.findall(r"changed=(\d+)", output)) == {"0"}
    for host, other in (("node-a", "node-b"), ("node-b", "node-a")):
        found = arbiter(shared, host)
        assert found["ok"] and f"used by {other} too" in str(found["detail"])


def test_a_power_cut_of_the_primary_loses_nothing(shared: Lab) -> None:
    guest = guests.QUICK
    guests.start(shared, "node-a", guest)
    guests.wait_up(shared, guest)
    shared.playbook(str(ROOT / "playbooks" / "enable.yml"), "-e", f"vm={guest.name}")
    client = ledger(shared, guest, 10, "file")
    wait_protected(shared, "node-a", guest.name)
    shared.power_off("node-a")
    answers = answers_of(client)
    numbers = [number for number, __, __ in answers]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "an answer was lost"
    assert max(after[2] - before[2] for before, after in pairwise(answers)) < 10
    assert status(shared, "node-b", guest.name)["generation"] == 3


def test_a_returned_host_without_its_mount_waits_and_then_becomes_the_secondary(shared: Lab) -> None:
    guest = guests.QUICK
    shared.power_on("node-a")
    found = arbiter(shared, "node-a")
    assert not found["ok"] and "on this host's root file system" in str(found["detail"])
    shown = status(shared, "node-b", guest.name)
    while "cannot ask the arbiter" not in str(shown["reason"]):  # first the agent comes up there
        assert shown["state"] == "need_secondary", shown
        time.sleep(0.5)
        shown = status(shared, "node-b", guest.name)
    assert guest.name not in shared.run("node-a", "virsh -q list --name")
    share(shared, shared.build / "shared", DIRECTORY, ("node-a",))
    wait_protected(shared, "node-b", guest.name)
    assert arbiter(shared, "node-a")["ok"]
