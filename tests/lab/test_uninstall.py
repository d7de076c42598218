"""uninstall.yml leaves every server as it was before site.yml. Runs last: there is nothing left for others."""

from __future__ import annotations

import re
import subprocess

from tests.lab import cli, guests, snapshot
from tests.lab.lab import ROOT, Lab

OURS = re.compile(
    r"(etc/libvirt/(qemu|secrets|storage|nwfilter)|var/lib/libvirt|srv|root|opt/guests|etc/(hosts|fstab|resolv.conf))(/|$)"
)
"""What the guests of other tests and the tests themselves have left."""


def _uninstall(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = lab.playbook_command(str(ROOT / "playbooks" / "uninstall.yml"), *arguments)
    return subprocess.run(command, env=lab.ansible_environment(), capture_output=True, text=True,
                          check=False, timeout=600)  # fmt: skip


def test_uninstall_leaves_the_servers_as_they_were(
    lab: Lab, before_site: dict[str, snapshot.Snapshot], quick: guests.Guest
) -> None:
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
    lab.run(host, f"virsh destroy {quick.name}; virsh undefine {quick.name}")
    for server in lab.hosts:
        # Images are left and named, because a VM may run from its replica.
        lab.run(server, "rm -rf /var/lib/kvmft/images")
        found = snapshot.differences(lab, server, before_site[server], snapshot.take(lab, server))
        assert [line for line in found if OURS.match(line) is None] == [], server
