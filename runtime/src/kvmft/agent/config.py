"""`/etc/kvmft/kvmft.yml`, read strictly: a wrong value is named by its exact path (I7)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from kvmft.adapters.ftlog import TlsFiles
from kvmft.core.detector import DETECTION, FT_SILENCE
from kvmft.core.pacing import Pace
from kvmft.core.saving import DELTA_MIB
from kvmft.errors import KvmftError

DEFAULT_PATH = "/etc/kvmft/kvmft.yml"
DEFAULTS: dict[str, float] = {
    "interval_ms": round(Pace.interval * 1000),
    "min_interval_ms": round(Pace.min_interval * 1000),
    "max_added_latency_ms": round(Pace.max_added_latency * 1000),
    "max_pause_share": Pace.max_pause_share,
    "detection_ms": round(DETECTION * 1000),
    "ft_silence_ms": round(FT_SILENCE * 1000),
    "hold_bound_ms": 3000,
    "agent_grace_ms": 8000,
    "sync_mib_s": 0,
    "delta_mib": DELTA_MIB,
    "replay_input": True,
    "realtime": True,
    "true_time": True,
}
UNITS: dict[str, tuple[str, float, float]] = {
    "sync_mib_s": ("MiB/s", 0, 600_000),
    "delta_mib": ("MiB", 0, 65_536),
    "max_pause_share": ("the time, a share of 1", 0.01, 0.9),
}
"""Unit, least and most of options that are no milliseconds."""
SWITCHES = ("replay_input", "realtime", "true_time")
"""Options that are on or off."""
MILLISECONDS = ("milliseconds", 1, 600_000)
KEYS = (
    "cluster_id", "host", "storage_pool", "addresses", "peers", "ft_port", "ft_log_ports", "tls",
    "arbiter", "defaults", "metrics",
)  # fmt: skip
METRICS_PORT = 7409
NETWORKS = ("management", "ft", "migration")


@dataclass(frozen=True)
class Config:
    """The agent's configuration. `options` are the defaults of ft_vm's options: times in
    milliseconds, `sync_mib_s`, the bound of a sync in MiB per second (0: none), `delta_mib`, the memory for
    what was sent last in MiB (0: none), `max_pause_share`, the most of the time that a VM stands still, and
    `replay_input`, `realtime` and `true_time`, which are true or false.
    `metrics_port` None: no metrics are served."""

    cluster_id: str
    host: str
    storage_pool: str
    addresses: dict[str, str]
    peers: dict[str, dict[str, str]]
    ft_port: int
    ft_log_ports: tuple[int, int]
    tls: TlsFiles
    arbiter: dict[str, Any]
    options: dict[str, float]
    metrics_address: str = ""
    metrics_port: int | None = None


def _wrong(path: str, value: object, want: str) -> KvmftError:
    return KvmftError(
        "config_invalid",
        f"{path} in the configuration is {value!r}; it must be {want}.",
        "Correct the inventory and run the runtime role again.",
    )


def _text(value: Any, path: str, want: str, pattern: str = r".+") -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise _wrong(path, value, want)
    return value


def _addresses(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong(path, value, "a mapping of management, ft and migration to addresses")
    for name in NETWORKS:
        try:
            # A bare number is an address to `ipaddress`, but a slip in a configuration.
            ipaddress.ip_address(_text(value.get(name), f"{path}.{name}", "an IP address"))
        except ValueError:
            raise _wrong(f"{path}.{name}", value.get(name), "an IP address") from None
    return {name: str(value[name]) for name in NETWORKS}


def _port(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise _wrong(path, value, "a port number from 1 to 65535")
    return value


def _metrics(value: Any, management: str) -> tuple[str, int | None]:
    """Address and port of the metrics: the management address and METRICS_PORT by default."""
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise _wrong("metrics", value, "a mapping of address and port")
    for name in value:
        if name not in ("address", "port"):
            raise _wrong(f"metrics.{name}", value[name], "address or port; this name is unknown")
    address = value.get("address") or management
    try:
        ipaddress.ip_address(_text(address, "metrics.address", "an IP address"))
    except ValueError:
        raise _wrong("metrics.address", address, "an IP address") from None
    port = value.get("port", METRICS_PORT)
    return address, None if port is None else _port(port, "metrics.port")


def check_options(
    value: Any, path: str, defaults: dict[str, float] | None = None
) -> dict[str, float]:
    """Validate options of a VM: known names, numbers in their units, and those that must fit one another
    or, where they are not given, `defaults` (None: DEFAULTS)."""
    if not isinstance(value, dict):
        raise _wrong(path, value, "a mapping")
    for name, number in value.items():
        if name not in DEFAULTS:
            raise _wrong(f"{path}.{name}", number, f"one of the options {', '.join(DEFAULTS)}")
        if name in SWITCHES:
            if not isinstance(number, bool):
                raise _wrong(f"{path}.{name}", number, "true or false")
            continue
        unit, least, most = UNITS.get(name, MILLISECONDS)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise _wrong(f"{path}.{name}", number, f"a number of {unit}")
        if not least <= number <= most:
            raise _wrong(f"{path}.{name}", number, f"between {least} and {most} {unit}")
    detection = value.get("detection_ms", (defaults or DEFAULTS)["detection_ms"])
    if value.get("ft_silence_ms", detection) < detection:
        raise _wrong(f"{path}.ft_silence_ms", value["ft_silence_ms"],
                     f"at least detection_ms, {detection}")  # fmt: skip
    return dict(value)


def _arbiter(value: Any) -> dict[str, Any]:
    """The `arbiter` section; only its own keys, because a misspelt one would be silently without."""
    if not isinstance(value, dict):
        raise _wrong("arbiter", value, "a mapping with type etcd, file or none")
    keys = {"etcd": ("endpoints", "tls"), "file": ("directory",), "none": ()}
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in keys:
        raise _wrong("arbiter.type", kind, "etcd, file or none")
    for name in value:
        if name != "type" and name not in keys[kind]:
            known = ", ".join(("type", *keys[kind]))
            raise _wrong(f"arbiter.{name}", value[name], f"left out: type {kind} has {known}")
    if kind == "etcd":
        _endpoints(value)
    if kind == "file":
        path = "arbiter.directory"
        directory = _text(value.get("directory"), path, "an absolute path", r"/.+")
        if re.match(r"/(tmp|var/tmp|run|proc|sys|dev)(/|$)", directory):
            raise _wrong(path, directory, "a directory that all hosts mount, none of this host's own")
    return dict(value)


def _endpoints(value: dict[str, Any]) -> None:
    endpoints, tls = value.get("endpoints"), value.get("tls")
    if not isinstance(endpoints, list) or not endpoints:
        raise _wrong("arbiter.endpoints", endpoints, "a list of at least one URL")
    for url in endpoints:
        _text(url, "arbiter.endpoints", "URLs of http or https", r"https?://[^/\s]+")
    if tls is None:
        return
    if not isinstance(tls, dict) or not set(tls) <= {"ca", "cert", "key"}:
        raise _wrong("arbiter.tls", tls, "a mapping of ca, cert and key to paths")
    for name, each in tls.items():
        _text(each, f"arbiter.tls.{name}", "a path")
    if ("cert" in tls) != ("key" in tls):
        raise _wrong("arbiter.tls", tls, "with both cert and key, or neither")


def parse(value: Any) -> Config:
    """Check the whole configuration; KvmftError `config_invalid` names the first wrong place."""
    if not isinstance(value, dict):
        raise _wrong("the file", value, "a mapping")
    for name in value:
        if name not in KEYS:
            raise _wrong(str(name), value[name], f"one of {', '.join(KEYS)}; this name is unknown")
    host = _text(value.get("host"), "host", "this host's inventory name")
    peers = value.get("peers")
    if not isinstance(peers, dict) or not peers:
        raise _wrong("peers", peers, "a mapping with at least one other host")
    if host in peers:
        raise _wrong(f"peers.{host}", peers[host], "another host than this one")
    addresses = _addresses(value.get("addresses"), "addresses")
    known = {name: _addresses(each, f"peers.{name}") for name, each in peers.items()}
    taken = {addresses["ft"]: "this host"}
    for name, each in known.items():
        if each["ft"] in taken:
            whose = taken[each["ft"]]
            raise _wrong(f"peers.{name}.ft", each["ft"], f"another address than that of {whose}")
        taken[each["ft"]] = name
    ports = value.get("ft_log_ports", [7411, 7499])
    if not isinstance(ports, list) or len(ports) != 2:
        raise _wrong("ft_log_ports", ports, "a list of the first and the last port")
    first, last = (_port(port, "ft_log_ports") for port in ports)
    if first > last:
        raise _wrong("ft_log_ports", ports, "the first port and then the last")
    ft_port = _port(value.get("ft_port", 7410), "ft_port")
    if first <= ft_port <= last:
        raise _wrong("ft_port", ft_port, f"outside ft_log_ports, {first} to {last}")
    tls = value.get("tls")
    if not isinstance(tls, dict):
        raise _wrong("tls", tls, "a mapping of ca, cert and key to paths")
    files = [_text(tls.get(name), f"tls.{name}", "a path") for name in ("ca", "cert", "key")]
    arbiter = _arbiter(value.get("arbiter"))
    metrics_address, metrics_port = _metrics(value.get("metrics"), addresses["management"])
    options = {**DEFAULTS, **check_options(value.get("defaults") or {}, "defaults")}
    if options["min_interval_ms"] > options["interval_ms"]:
        raise _wrong("defaults.min_interval_ms", options["min_interval_ms"],
                     f"at most interval_ms, {options['interval_ms']}")  # fmt: skip
    return Config(
        cluster_id=_text(value.get("cluster_id"), "cluster_id", "32 hex digits", r"[0-9a-f]{32}"),
        host=host,
        storage_pool=_text(value.get("storage_pool"), "storage_pool", "an absolute path", r"/.+"),
        addresses=addresses,
        peers=known,
        ft_port=ft_port,
        ft_log_ports=(first, last),
        tls=TlsFiles(*files),
        arbiter=arbiter,
        options=options,
        metrics_address=metrics_address,
        metrics_port=metrics_port,
    )


def load(path: str = DEFAULT_PATH) -> Config:
    """Read the configuration at `path`."""
    import yaml  # Debian's python3-yaml; only the agent needs it

    try:
        with open(path, encoding="utf-8") as file:
            return parse(yaml.safe_load(file))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise KvmftError(
            "config_unreadable",
            f"The configuration {path} cannot be read: {error}.",
            "Run the runtime role of kvmft.core for this host.",
        ) from error
