"""Two servers of different Debian releases: set up alike, and refused as a pair before any harm."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab import cli, guests, images
from tests.lab.lab import Lab

VM = guests.QUICK


@pytest.fixture(scope="module")
def mixed() -> Iterator[Lab]:
    """node-a of the release under test, node-b of another, and the guest on node-a."""
    name = os.environ.get("KVMFT_LAB", "test") + "m"
    release = os.environ.get("KVMFT_RELEASE") or "12"
    other = [each for each in images.SUITES if each != release][0]
    made = Lab(name, release, other={"node-b": other})
    made.down()
    try:
        made.up()
        # All is set up; then its last play, which verifies, says what stands against protecting VMs.
        with pytest.raises(RuntimeError, match=r"versions: QEMU is \S+ here and \S+ on node-b"):
            cli.site(made, quiet=True)
        guests.start(made, "node-a", VM)
        yield made
    finally:
        if "KVMFT_KEEP" not in os.environ:
            made.down()


def qemu(lab: Lab, host: str) -> str:
    return str(json.loads(lab.run(host, "kvmft host --json"))["qemu"])


def test_a_pair_of_two_qemu_versions_is_refused_and_nothing_is_started(mixed: Lab) -> None:
    here, there = qemu(mixed, "node-a"), qemu(mixed, "node-b")
    assert here != there
    before = mixed.run("node-a", f"cat /run/libvirt/qemu/{VM.name}.pid")
    found = mixed.run("node-a", f"kvmft check {VM.name} --json", check=False).splitlines()
    # The other QEMU may lack the VM's machine type too, which is told besides.
    assert "qemu_version" in [json.loads(line)["code"] for line in found]
    done = subprocess.run([*mixed.ssh_command("node-a"), f"kvmft enable {VM.name}"],
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 1
    assert f"QEMU is {here} on the primary and {there} on node-b" in done.stderr
    assert "Upgrade both hosts to the same version" in done.stderr
    assert mixed.run("node-b", "virsh -q list --all").strip() == ""
    assert mixed.run("node-a", f"cat /run/libvirt/qemu/{VM.name}.pid") == before
    guests.wait_up(mixed, VM)
