"""The start line: times of silence, and the addresses between which beacons go."""

from __future__ import annotations

from typing import Any

import pytest

from kvmft.errors import KvmftError
from kvmft.worker.config import BeaconPaths, parse

LINE: dict[str, Any] = {
    "role": "primary", "vm": "db1", "uuid": "u", "host": "node-a", "peer": "node-b", "cluster_id": "c" * 32,
    "session": "5" * 32, "run_dir": "/run/x", "state_dir": "/var/x", "tls": {"ca": "", "cert": "", "key": ""},
    "arbiter": {"type": "none"}, "qemu_pid": 1, "machine": "q35", "disks": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "times"),
    [({}, (0.3, 0.8)), ({"detection_ms": 200, "ft_silence_ms": 450}, (0.2, 0.45)),
     ({"detection_ms": 5000, "ft_silence_ms": 1000}, (5.0, 5.0)), ({"detection_ms": 2000}, (2.0, 2.0))],
)  # fmt: skip
def test_times_of_silence(options: dict[str, Any], times: tuple[float, float]) -> None:
    config = parse({**LINE, "options": options})
    assert (config.detection, config.ft_silence) == times


def test_addresses_of_beacons() -> None:
    beacons = {"address": "10.90.0.11", "peer_address": "10.90.0.12", "ports": [7411, 7499]}
    config = parse({**LINE, "beacons": beacons})
    assert config.beacons == BeaconPaths("10.90.0.11", "10.90.0.12", (7411, 7499))


@pytest.mark.parametrize("line", [LINE, {**LINE, "beacons": None}])
def test_an_agent_that_tells_no_addresses_means_no_beacons(line: dict[str, Any]) -> None:
    assert parse(line).beacons is None


def test_a_wrong_time_is_named() -> None:
    with pytest.raises(KvmftError, match="ft_silence_ms"):
        parse({**LINE, "options": {"ft_silence_ms": 0}})
