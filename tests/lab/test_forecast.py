"""`kvmft forecast` on a server: of a guest that plain virsh started, while clients ask it; then beside its protection."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import guests
from tests.lab.lab import Lab
from tests.lab.test_protect import answers_of, ledger, status, wait_protected

SECONDS = 8


@pytest.fixture(scope="module")
def unprotected(lab: Lab, quick: guests.Guest) -> Iterator[tuple[str, guests.Guest]]:
    """The guest, unprotected, and the host that runs it; protection is off again at the end."""
    (host,) = (node for node in ("node-a", "node-b") if quick.name in lab.run(node, "virsh -q list --name"))
    lab.run(host, f"kvmft disable {quick.name}", check=False)
    yield host, quick
    lab.run(host, f"kvmft disable {quick.name}")


def forecast(lab: Lab, host: str, vm: str, *options: str) -> dict[str, Any]:
    return dict(json.loads(lab.run(host, f"kvmft forecast {vm} --seconds {SECONDS} --json {' '.join(options)}")))


def refusal(lab: Lab, host: str, vm: str) -> str:
    return lab.run(host, f"kvmft forecast {vm} --seconds 2 2>&1", check=False)


def tracked(lab: Lab, host: str, vm: str) -> str:
    """QEMU's descriptors of userfaultfd, which there must be none of."""
    return lab.run(host, f"ls -l /proc/$(cat /run/libvirt/qemu/{vm}.pid)/fd | grep userfaultfd", check=False)


def test_what_it_foretells_of_a_guest_that_is_asked_is_what_protection_then_shows(
    lab: Lab, unprotected: tuple[str, guests.Guest]
) -> None:
    host, guest = unprotected
    client = ledger(lab, guest, SECONDS + 6, "forecast")
    told = forecast(lab, host, guest.name, "--stop")
    answers_of(client)
    assert tracked(lab, host, guest.name) == ""
    output = told["output"]
    assert output["seen"] and output["packets"] > 100 and output["bursts_s"] > 10, "the client's answers are seen on the tap"
    assert told["disk_bytes_s"] > 0 and told["costs"]["log_bytes_s"] > 1e6
    assert not any("FT network" in each for each in told["assumed"]), "the peer answered"

    lab.run(host, f"kvmft enable {guest.name} --wait 120")
    client = ledger(lab, guest, SECONDS, "protected")
    time.sleep(SECONDS - 2)
    shown: dict[str, Any] = status(lab, host, guest.name)
    answers_of(client)
    print(f"\nforetold: {told}\nshown: {shown}")
    foretold, measured = told["pages_per_epoch"]["p50"], shown["pages_per_epoch"]["p50"]
    assert measured / 3 < foretold < measured * 3
    assert "kvmft status" in refusal(lab, host, guest.name), "a protected VM has its figures there"
    lab.run(host, f"kvmft disable {guest.name}")


def test_a_vm_that_is_missing_or_paused_and_a_second_one_are_refused(lab: Lab, unprotected: tuple[str, guests.Guest]) -> None:
    host, guest = unprotected
    assert "does not exist" in refusal(lab, host, "nobody")
    lab.run(host, f"virsh -q suspend {guest.name}")
    try:
        assert "is paused" in refusal(lab, host, guest.name)
    finally:
        lab.run(host, f"virsh -q resume {guest.name}")
    said = lab.run(host, f"kvmft forecast {guest.name} --seconds 6 >/tmp/first 2>&1 & sleep 3; "
                   f"kvmft forecast {guest.name} --seconds 2 2>&1; wait; cat /tmp/first", check=False)  # fmt: skip
    assert "is under way already" in said and "what protection would cost" in said


@pytest.mark.parametrize("how", ["systemctl restart kvmft-agent", "systemctl kill -s KILL --kill-whom=main kvmft-agent"])
def test_an_agent_that_goes_leaves_nothing_in_qemu(lab: Lab, unprotected: tuple[str, guests.Guest], how: str) -> None:
    host, guest = unprotected
    with subprocess.Popen([*lab.ssh_command(host), f"kvmft forecast {guest.name} --seconds 30"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL):  # fmt: skip
        time.sleep(5)
        lab.run(host, how)
        time.sleep(5)
        assert lab.run(host, "pgrep -f kvmft.worker.forecas[t]", check=False) == ""
        assert tracked(lab, host, guest.name) == ""
    guests.wait_up(lab, guest, 30)
    assert forecast(lab, host, guest.name)["dirty_pages"], "its memory is free to be tracked again"


def test_protection_goes_first(lab: Lab, unprotected: tuple[str, guests.Guest]) -> None:
    host, guest = unprotected
    with subprocess.Popen([*lab.ssh_command(host), f"kvmft forecast {guest.name} --seconds 60"], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as asked:  # fmt: skip
        time.sleep(5)
        lab.run(host, f"kvmft enable {guest.name}")
        wait_protected(lab, host, guest.name)
        out, __ = asked.communicate(timeout=30)
    assert asked.returncode == 1 and "protection goes first" in out
