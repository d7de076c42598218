"""The configuration: each wrong value is named by its exact path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from kvmft.agent.config import check_options, parse
from kvmft.errors import KvmftError

GOOD: dict[str, Any] = {
    "cluster_id": "c" * 32,
    "host": "node-a",
    "storage_pool": "/var/lib/kvmft/images",
    "addresses": {"management": "10.90.0.11", "ft": "10.91.0.11", "migration": "10.92.0.11"},
    "peers": {
        "node-b": {"management": "10.90.0.12", "ft": "10.91.0.12", "migration": "10.92.0.12"}
    },
    "ft_port": 7410,
    "ft_log_ports": [7411, 7499],
    "tls": {"ca": "/ca", "cert": "/cert", "key": "/key"},
    "arbiter": {"type": "etcd", "endpoints": ["https://10.90.0.13:2379"]},
    "defaults": {"detection_ms": 500},
}


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        where: Any = config
        for step in path[:-1]:
            where = where[step]
        where[path[-1]] = value

    return change


def test_a_good_configuration_is_read_with_defaults() -> None:
    config = parse(GOOD)
    assert config.options["detection_ms"] == 500 and config.options["interval_ms"] == 500


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (put("host", value=""), "host"),
        (put("peers", value={}), "peers"),
        (put("peers", value={"node-a": GOOD["addresses"]}), "peers.node-a"),
        (put("peers", "node-b", "ft", value="10.91.0.11"), "peers.node-b.ft"),
        (put("addresses", "ft", value=None), "addresses.ft"),
        (put("addresses", "ft", value="10.91.0.300"), "addresses.ft"),
        (put("peers", "node-b", "migration", value=""), "peers.node-b.migration"),
        (put("cluster_id", value="short"), "cluster_id"),
        (put("ft_port", value=0), "ft_port"),
        (put("ft_port", value=True), "ft_port"),
        (put("ft_log_ports", value=[1]), "ft_log_ports"),
        (put("tls", "key", value=None), "tls.key"),
        (put("arbiter", "type", value="quorum"), "arbiter.type"),
        (put("arbiter", "endpoints", value=[]), "arbiter.endpoints"),
        (put("arbiter", "endpoints", 0, value="witness"), "arbiter.endpoints"),
        (put("arbiter", "endpoint", value=["https://10.90.0.13:2379"]), "arbiter.endpoint"),
        (put("arbiter", "type", value=["etcd"]), "arbiter.type"),
        (put("arbiter", "tls", value="/ca"), "arbiter.tls"),
        (put("arbiter", "tls", value={"ca": "/ca", "crt": "/c"}), "arbiter.tls"),
        (put("arbiter", "tls", value={"cert": "/c"}), "arbiter.tls"),
        (put("arbiter", "tls", value={"ca": 5}), "arbiter.tls.ca"),
        (put("arbiter", value={"type": "none", "directory": "/srv/x"}), "arbiter.directory"),
        (put("arbiter", value={"type": "file"}), "arbiter.directory"),
        (put("arbiter", value={"type": "file", "directory": "srv/x"}), "arbiter.directory"),
        (put("arbiter", value={"type": "file", "directory": "/tmp/x"}), "arbiter.directory"),
        (put("arbiter", value={"type": "file", "directory": "/srv/x", "endpoints": []}),
         "arbiter.endpoints"),
        (put("defaults", "interval", value=5), "defaults.interval"),
        (put("defaults", "detection_ms", value=-1), "defaults.detection_ms"),
        (put("defaults", "ft_silence_ms", value=499), "defaults.ft_silence_ms"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(
    change: Callable[[dict[str, Any]], None], path: str
) -> None:
    value = copy.deepcopy(GOOD)
    change(value)
    with pytest.raises(KvmftError) as caught:
        parse(value)
    assert caught.value.message.startswith(f"{path} in the configuration") and caught.value.remedy


@pytest.mark.parametrize(
    "section",
    [{"type": "none"}, {"type": "file", "directory": "/srv/kvmft-arbiter"},
     {"type": "etcd", "endpoints": ["http://[fd00::1]:2379"], "tls": {"ca": "/ca"}}],
)  # fmt: skip
def test_each_kind_of_arbiter_is_read(section: dict[str, Any]) -> None:
    assert parse({**GOOD, "arbiter": section}).arbiter == section


@pytest.mark.parametrize("value", [{"interval_ms": True}, {"interval_ms": "20"}, {"max_pause_share": 1}, {"max_pause_share": 0},
                                   {"delta_mib": -1}, {"delta_mib": True}, {"x": 1}, [1]])  # fmt: skip
def test_options_of_a_vm_are_checked_too(value: object) -> None:
    with pytest.raises(KvmftError, match="options"):
        check_options(value, "options")


def test_the_silence_of_the_log_alone_is_not_shorter_than_that_of_both() -> None:
    assert check_options({"ft_silence_ms": 400, "detection_ms": 400}, "options")
    assert check_options({"detection_ms": 5000}, "options"), "the default of the other follows it"
    assert check_options({"ft_silence_ms": 300}, "options")
    for wrong, defaults in (({"ft_silence_ms": 399, "detection_ms": 400}, {"detection_ms": 300}),
                            ({"ft_silence_ms": 299}, {"detection_ms": 300}),
                            ({"ft_silence_ms": 600}, {"detection_ms": 800})):  # fmt: skip
        with pytest.raises(KvmftError, match=r"options.ft_silence_ms .* at least detection_ms"):
            check_options(wrong, "options", defaults)
