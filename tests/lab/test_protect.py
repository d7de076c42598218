"""A running guest gets FT turned on, its replica is equal, and a power cut loses nothing.

The tests build on one another, in this order, on one guest.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab import cli, guests
from tests.lab.lab import ROOT, Lab

MARKER = "kvmft-marker-5f1c2ad7"

LEDGER = """
import json, socket, sys, time
address, port, seconds, text = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
connection = socket.create_connection((address, port), timeout=30)
reader = connection.makefile("rb")
answers, until = [], time.monotonic() + seconds
while time.monotonic() < until:
    connection.sendall(f"{text} {len(answers)}\\n".encode())
    answer = reader.readline().decode().split()
    if not answer:
        sys.exit("the connection was closed")
    answers.append((int(answer[1]), " ".join(answer[2:]), time.monotonic()))
    time.sleep(0.01)
print(json.dumps(answers))
"""
"""A client of tests/guest/ledger.c: what it was told is on the guest's disk, and when (monotonic)."""


def ledger(lab: Lab, guest: guests.Guest, seconds: float, text: str) -> subprocess.Popen[str]:
    """Write records for `seconds` over one TCP connection."""
    return subprocess.Popen(
        lab.inside(sys.executable, "-c", LEDGER, guest.address, str(guest.port), str(seconds), text),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def answers_of(client: subprocess.Popen[str]) -> list[tuple[int, str, float]]:
    """What the client was told; fails when its connection broke."""
    out, error = client.communicate(timeout=120)
    assert client.returncode == 0, error
    return [(number, record, at) for number, record, at in json.loads(out)]


def status(lab: Lab, host: str, vm: str) -> dict[str, object]:
    """`kvmft status` of one VM."""
    return dict(json.loads(lab.run(host, f"kvmft status {vm} --json")))


@pytest.fixture(scope="module")
def protected(lab: Lab, quick: guests.Guest) -> Iterator[guests.Guest]:
    """The guest, protected by the playbook while it runs."""
    pid = lab.run("node-a", "cat /run/libvirt/qemu/quick1.pid")
    cli.playbook(lab, "enable", "-e", f"vm={quick.name}", quiet=True)
    assert status(lab, "node-a", quick.name)["state"] == "protected"
    assert lab.run("node-a", "cat /run/libvirt/qemu/quick1.pid") == pid, "the VM was restarted"
    yield quick


def test_enable_twice_changes_nothing(lab: Lab, protected: guests.Guest) -> None:
    output = cli.playbook(lab, "enable", "-e", f"vm={protected.name}", quiet=True)
    assert set(re.findall(r"changed=(\d+)", output)) == {"0"}


def test_replica_equals_the_vm_page_by_page(lab: Lab, protected: guests.Guest) -> None:
    client = ledger(lab, protected, 4, "audit")
    time.sleep(1)
    found = json.loads(lab.run("node-a", f"kvmft audit {protected.name} --json", check=False))
    answers_of(client)
    assert found["pages"] >= protected.memory * 256
    assert found["different"] == 0


def test_ft_network_carries_no_plaintext(lab: Lab, protected: guests.Guest) -> None:
    lab.run("node-b", "rm -f /tmp/ft.pcap; nohup timeout 6 tcpdump -i ft0 -s 0 -U -w /tmp/ft.pcap "
            ">/dev/null 2>&1 & sleep 1")  # fmt: skip
    answers = answers_of(ledger(lab, protected, 3, MARKER))
    assert any(MARKER in record for _, record, _ in answers)
    time.sleep(3)
    size = int(lab.run("node-b", "stat -c %s /tmp/ft.pcap"))
    assert size > 100_000, "the capture holds no FT log"
    count = lab.run("node-b", f"grep -a -c {MARKER} /tmp/ft.pcap", check=False).strip()
    assert count == "0"


def test_power_cut_loses_nothing_and_breaks_no_connection(
    lab: Lab, protected: guests.Guest
) -> None:
    client = ledger(lab, protected, 12, "cut")
    time.sleep(4)
    when = lab.power_off("node-a")
    answers = answers_of(client)
    after = [at for _, _, at in answers if at > when]
    assert after, "nothing was answered after the power cut"
    gap = min(after) - max(at for _, _, at in answers if at <= when)
    assert gap < 5.0
    stored = _read_back(lab, protected, [number for number, _, _ in answers])
    assert stored == [record for _, record, _ in answers]
    assert status(lab, "node-b", protected.name)["state"] == "need_secondary"


def _read_back(lab: Lab, guest: guests.Guest, numbers: list[int]) -> list[str]:
    program = (
        "import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2]))); "
        "r = c.makefile('rwb', 0)\n"
        "for n in sys.stdin.read().split():\n"
        "    r.write(f'read {n}\\n'.encode()); print(r.readline().decode().strip())"
    )
    command = lab.inside(sys.executable, "-c", program, guest.address, str(guest.port))
    done = subprocess.run(command, input=" ".join(map(str, numbers)), capture_output=True, text=True,
                          timeout=120, check=True)  # fmt: skip
    return [" ".join(line.split()[2:]) for line in done.stdout.splitlines()]


def test_the_server_that_comes_back_becomes_the_secondary(
    lab: Lab, protected: guests.Guest
) -> None:
    lab.power_on("node-a")
    until = time.monotonic() + 120
    while (found := status(lab, "node-b", protected.name))["state"] != "protected":
        assert time.monotonic() < until, found["reason"]
        time.sleep(0.5)
    assert (found["primary"], found["secondary"]) == ("node-b", "node-a")
