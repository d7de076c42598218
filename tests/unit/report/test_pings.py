"""Answers are timed whichever way the guest answers, and silence is counted."""

from __future__ import annotations

import socket
import struct

import pytest

from kvmft.errors import KvmftError
from kvmft.report import pings


def test_an_accepted_and_a_refused_connection_are_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        accepted = pings.ping("127.0.0.1", port, 0.35)
    refused = pings.ping("127.0.0.1", port, 0.05)
    assert len(accepted["ms"]) == 4 and all(0 < each < 1000 for each in accepted["ms"])
    assert len(refused["ms"]) == 1 and refused["unanswered"] == 0
    assert refused["kind"] == "TCP connect" and refused["address"] == f"127.0.0.1:{port}"


def test_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pings, "PATIENCE", 0.1)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for __ in range(3)]  # they fill the queue; what comes then is dropped
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        found = pings.ping(*address, 0.05)
        for each in waiting:
            each.close()
    assert found["ms"] == [] and found["unanswered"] == 1


def test_an_echo_is_answered_by_the_kernel() -> None:
    found = pings.ping("127.0.0.1", None, 0.25)
    assert found["kind"] == "ICMP echo" and len(found["ms"]) == 3 and found["unanswered"] == 0


def test_the_checksum_makes_the_sum_come_out() -> None:
    data = struct.pack("!HHHH", 0x0800, 0, 0xBEEF, 0xFFFF)
    whole = struct.pack("!HHHH", 0x0800, pings.checksum(data), 0xBEEF, 0xFFFF)
    assert pings.checksum(whole) == 0


@pytest.mark.parametrize("where", ["", "db1", "10.0.0", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:ssh", "::1"])
def test_what_is_no_address_is_said_before_anything_is_measured(where: str) -> None:
    with pytest.raises(KvmftError, match="no IPv4 address") as error:
        pings.parse(where)
    assert error.value.remedy.startswith("Give it as")


def test_addresses() -> None:
    assert pings.parse("10.0.0.1") == ("10.0.0.1", None) and pings.parse("10.0.0.1:5432") == ("10.0.0.1", 5432)
