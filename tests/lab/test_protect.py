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
    return [tuple(each) for each in json.loads(out)]


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
    assert any(MARKER in record for __, record, __ in answers)
    time.sleep(3)
    size = int(lab.run("node-b", "stat -c %s /tmp/ft.pcap"))
    assert size > 100_000, "the capture holds no FT log"
    count = lab.run("node-b", f"grep -a -c {MARKER} /tmp/ft.pcap", check=False).strip()
    assert count == "0"


def wait_protected(lab: Lab, host: str, vm: str, seconds: float = 120) -> dict[str, object]:
    """Wait until `host` shows the VM as protected; its status."""
    until = time.monotonic() + seconds
    while (found := status(lab, host, vm))["state"] != "protected":
        assert time.monotonic() < until, found["reason"]
        time.sleep(0.5)
    return found


def test_killed_agent_shuts_the_output_until_it_is_back_and_the_guest_runs_on(
    lab: Lab, protected: guests.Guest
) -> None:
    pid = lab.run("node-a", "cat /run/libvirt/qemu/quick1.pid")
    client = ledger(lab, protected, 14, "agent")
    time.sleep(3)
    said = lab.run("node-a", "kill -9 $(systemctl show -p MainPID --value kvmft-agent); "
                   "date +%s.%N")  # fmt: skip
    wall = time.time() - time.monotonic()
    killed = float(said) - wall
    answers = answers_of(client)
    lines = lab.run("node-a", "kvmft events --json").splitlines()
    started = [each for each in map(json.loads, lines) if each["event"] == "agent_started"]
    back = started[-1]["time"] - wall
    assert back > killed, "the agent was not started again"
    assert [at for __, __, at in answers if killed + 0.2 < at < back] == []
    assert [at for __, __, at in answers if at > back], "no output after the agent was back"
    assert lab.run("node-a", "cat /run/libvirt/qemu/quick1.pid") == pid, "the VM was restarted"
    wait_protected(lab, "node-a", protected.name)


def test_power_cut_loses_nothing_and_breaks_no_connection(
    lab: Lab, protected: guests.Guest
) -> None:
    client = ledger(lab, protected, 12, "cut")
    time.sleep(4)
    when = lab.power_off("node-a")
    answers = answers_of(client)
    after = [at for __, __, at in answers if at > when]
    assert after, "nothing was answered after the power cut"
    gap = min(after) - max(at for __, __, at in answers if at <= when)
    assert gap < 5.0
    stored = _read_back(lab, protected, [number for number, __, __ in answers])
    assert stored == [record for __, record, __ in answers]
    found = status(lab, "node-b", protected.name)
    assert (found["primary"], found["role"]) == ("node-b", "primary")
    assert found["state"] in ("need_secondary", "starting")


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
    found = wait_protected(lab, "node-b", protected.name)
    assert (found["primary"], found["secondary"]) == ("node-b", "node-a")


def test_stale_server_never_starts_the_vm_by_itself(lab: Lab, protected: guests.Guest) -> None:
    lab.power_off("node-a")
    lab.power_on("node-a")
    # The agent may have made it a standby again by now; what a person starts then is the old VM.
    done = subprocess.run(
        [*lab.ssh_command("node-a"), f"systemctl stop kvmft-agent; virsh -q destroy {protected.name} "
         f"2>/dev/null; virsh start {protected.name}"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    lab.run("node-a", "systemctl start kvmft-agent")
    assert done.returncode != 0
    assert "it is not started here" in done.stderr
    wait_protected(lab, "node-b", protected.name)


def test_ordered_failover_goes_to_the_target_once(lab: Lab, protected: guests.Guest) -> None:
    client = ledger(lab, protected, 20, "ordered")
    time.sleep(2)
    lab.run("node-b", f"kvmft failover {protected.name} --mode unplanned")
    answers = answers_of(client)
    assert status(lab, "node-a", protected.name)["role"] == "primary"
    assert "running" not in lab.run("node-b", "virsh list --state-running")
    stored = _read_back(lab, protected, [number for number, __, __ in answers])
    assert stored == [record for __, record, __ in answers]
    wait_protected(lab, "node-a", protected.name)


def test_disable_leaves_the_guest_running_and_twice_changes_nothing(
    lab: Lab, protected: guests.Guest
) -> None:
    pid = lab.run("node-a", "cat /run/libvirt/qemu/quick1.pid")
    cli.playbook(lab, "disable", "-e", f"vm={protected.name}", quiet=True)
    assert answers_of(ledger(lab, protected, 2, "off"))
    assert lab.run("node-a", "cat /run/libvirt/qemu/quick1.pid") == pid
    assert status(lab, "node-a", protected.name)["state"] == "disabled"
    output = cli.playbook(lab, "disable", "-e", f"vm={protected.name}", quiet=True)
    assert set(re.findall(r"changed=(\d+)", output)) == {"0"}


def test_wrong_requests_are_one_clear_error_and_change_nothing(
    lab: Lab, protected: guests.Guest
) -> None:
    def refused(command: str) -> str:
        done = subprocess.run([*lab.ssh_command("node-a"), command], capture_output=True, text=True,
                              check=False, timeout=90)  # fmt: skip
        assert done.returncode == 1, done.stdout
        return done.stderr

    name = protected.name
    assert "VM nope does not exist on this host" in refused("kvmft enable nope")
    assert "does not offer test failover" in refused(
        f"kvmft enable {name} --wait 60 >/dev/null; kvmft failover {name} --mode test"
    )
    lab.run("node-a", f"kvmft disable {name}")
    lab.run("witness", "systemctl stop etcd")
    try:
        assert "The arbiter at https://10.90.0.13:2379 does not answer" in refused(
            f"kvmft enable {name}"
        )
    finally:
        lab.run("witness", "systemctl start etcd")
    lab.run("node-b", "systemctl stop kvmft-agent")
    try:
        assert "does not answer on the FT network" in refused(f"kvmft enable {name}")
    finally:
        lab.run("node-b", "systemctl start kvmft-agent")
    assert status(lab, "node-a", name)["state"] == "disabled"
    assert answers_of(ledger(lab, protected, 2, "still here"))
