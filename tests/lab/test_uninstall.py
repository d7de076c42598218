"""uninstall.yml while fault tolerance is on. Runs last: there is nothing left for others. That servers are as they were
before site.yml is compared in tests/jobs."""

from __future__ import annotations

import re
import subprocess

from tests.lab import cli, guests
from tests.lab.lab import ROOT, Lab


def _uninstall(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = lab.playbook_command(str(ROOT / "playbooks" / "uninstall.yml"), *arguments)
    return subprocess.run(command, env=lab.ansible_environment(), capture_output=True, text=True,
                          check=False, timeout=600)  # fmt: skip


def test_uninstall_refuses_or_turns_it_off_and_the_vm_runs_on(lab: Lab, quick: guests.Guest) -> None:
    cli.playbook(lab, "enable", "-e", f"vm={quick.name}", quiet=True)
    refused = _uninstall(lab)
    assert refused.returncode != 0 and "Fault tolerance is on for quick1" in refused.stdout
    host = "node-a" if quick.name in lab.run("node-a", "virsh list --name") else "node-b"
    pid = lab.run(host, f"cat /run/libvirt/qemu/{quick.name}.pid")
    done = _uninstall(lab, "-e", "kvmft_uninstall_disable=true", "-e", "kvmft_uninstall_stale=undefine")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert lab.run(host, f"cat /run/libvirt/qemu/{quick.name}.pid") == pid, "the VM was restarted"
    guests.wait_up(lab, quick)
    again = _uninstall(lab)
    assert again.returncode == 0 and set(re.findall(r"changed=(\d+)", again.stdout)) == {"0"}, again.stdout
