"""What the agent tells a worker of the two management addresses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvmft.agent.config import parse as read
from kvmft.agent.startlines import StartLines
from kvmft.agent.store import VmState
from kvmft.worker.config import BeaconPaths, parse
from tests.unit.agent.test_config import GOOD


def lines(peer: str) -> StartLines:
    config = read({**GOOD, "ft_log_ports": [7420, 7430]})
    agent: Any = SimpleNamespace(config=config, store=SimpleNamespace(directory=lambda vm: f"/var/{vm}"))
    return StartLines(agent, VmState("db1", "u", role="secondary", peer=peer, session="5" * 32))


def test_both_sides_are_told_where_their_beacons_go() -> None:
    want = BeaconPaths("10.90.0.11", "10.90.0.12", (7420, 7430))
    found: Any = SimpleNamespace(pid=1, domain=SimpleNamespace(own_monitor=None, machine="q35", nics=()))
    made = lines("node-b")
    for line in (made.secondary(1, False), made.primary(found, [], 7420)):
        config = parse(line)
        assert config.beacons == want and (config.detection, config.ft_silence) == (0.5, 0.8)


@pytest.mark.parametrize("peer", ["node-z", ""])
def test_a_peer_that_is_not_in_the_inventory_any_more_has_no_address(peer: str) -> None:
    assert parse(lines(peer).claim()).beacons is None
