"""The start line that the agent writes, as typed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvmft.adapters.arbiter_client import ArbiterIdentity, claims_path
from kvmft.adapters.ftlog import TlsFiles
from kvmft.core.detector import DETECTION, FT_SILENCE
from kvmft.core.pacing import Pace
from kvmft.core.saving import DELTA_MIB
from kvmft.errors import KvmftError


@dataclass(frozen=True)
class DiskConfig:
    """One disk: target name (`vda`), path of the image here, virtual size in bytes."""

    target: str
    path: str
    size: int


@dataclass(frozen=True)
class BeaconPaths:
    """The management addresses of this host and of the peer, and the UDP ports that may be used here."""

    address: str
    peer_address: str
    ports: tuple[int, int]


@dataclass(frozen=True)
class Base:
    """Memory that a process on this host keeps for the new standby: block name -> descriptor."""

    pid: int
    blocks: dict[str, int]


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is told at its start. Times in seconds, `sync_bandwidth` in bytes per second
    (0: unbounded), `delta_size` in bytes (0: none)."""

    role: str
    vm: str
    uuid: str
    host: str
    peer: str
    cluster_id: str
    session: str
    run_dir: str
    state_dir: str
    tls: TlsFiles
    arbiter: dict[str, Any]
    pace: Pace
    replay_input: bool
    realtime: bool
    true_time: bool
    detection: float
    ft_silence: float
    beacons: BeaconPaths | None
    hold_bound: float
    agent_grace: float
    qemu_pid: int
    domain: str
    own_monitor: str | None
    machine: str
    disks: tuple[DiskConfig, ...]
    nics: tuple[str, ...]
    peer_address: str
    peer_port: int | None
    create: bool
    listen_address: str
    port_range: tuple[int, int]
    resume: bool
    sync_bandwidth: int
    delta_size: int
    base: Base | None

    def identity(self) -> ArbiterIdentity:
        """Who claims for this VM."""
        path = claims_path(self.state_dir)
        return ArbiterIdentity(
            self.cluster_id, self.uuid, self.host, self.peer, path, self.arbiter
        )


def _seconds(options: dict[str, Any], name: str, default_ms: float) -> float:
    value = options.get(name, default_ms)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 600_000:
        raise KvmftError(
            "option_invalid",
            f"Option {name} is {value!r}; it must be a number of milliseconds above 0.",
            "Correct it in the ft_vm task or in /etc/kvmft/kvmft.yml.",
        )
    return float(value) / 1000.0


def pace_of(options: dict[str, Any]) -> Pace:
    """The pace that a VM's options ask for; KvmftError `option_invalid`."""
    share = options.get("max_pause_share", Pace.max_pause_share)
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share < 1:
        raise KvmftError(
            "option_invalid",
            f"Option max_pause_share is {share!r}; it must be a number between 0 and 1.",
            "Correct it in the ft_vm task or in /etc/kvmft/kvmft.yml.",
        )
    return Pace(
        interval=_seconds(options, "interval_ms", Pace.interval * 1000),
        min_interval=_seconds(options, "min_interval_ms", Pace.min_interval * 1000),
        max_added_latency=_seconds(options, "max_added_latency_ms", Pace.max_added_latency * 1000),
        max_pause_share=float(share),
    )


def delta_size_of(options: dict[str, Any]) -> int:
    """Bytes for the contents of pages as they were sent last; 0: none."""
    return int(float(options.get("delta_mib", DELTA_MIB)) * (1 << 20))


def _base(value: dict[str, Any] | None) -> Base | None:
    if not value:
        return None
    return Base(int(value["pid"]), {each["name"]: int(each["fd"]) for each in value["blocks"]})


def _beacons(value: dict[str, Any] | None) -> BeaconPaths | None:
    if not value:
        return None
    first, last = value["ports"]
    return BeaconPaths(value["address"], value["peer_address"], (int(first), int(last)))


def parse(line: dict[str, Any]) -> WorkerConfig:
    """Read the start line; KvmftError names what is missing."""
    options = line.get("options", {})
    try:
        detection = _seconds(options, "detection_ms", DETECTION * 1000)
        first, last = line.get("port_range", (7411, 7499))
        return WorkerConfig(
            role=line["role"],
            vm=line["vm"],
            uuid=line["uuid"],
            host=line["host"],
            peer=line["peer"],
            cluster_id=line["cluster_id"],
            session=line["session"],
            run_dir=line["run_dir"],
            state_dir=line["state_dir"],
            tls=TlsFiles(line["tls"]["ca"], line["tls"]["cert"], line["tls"]["key"]),
            arbiter=line["arbiter"],
            pace=pace_of(options),
            replay_input=bool(options.get("replay_input", True)),
            realtime=bool(options.get("realtime", True)),
            true_time=bool(options.get("true_time", True)),
            detection=detection,
            ft_silence=max(detection, _seconds(options, "ft_silence_ms", FT_SILENCE * 1000)),
            beacons=_beacons(line.get("beacons")),
            hold_bound=_seconds(options, "hold_bound_ms", 3000),
            agent_grace=_seconds(options, "agent_grace_ms", 8000),
            qemu_pid=int(line["qemu_pid"]),
            domain=line.get("domain", line["vm"]),
            own_monitor=line.get("own_monitor"),
            machine=line["machine"],
            disks=tuple(DiskConfig(d["target"], d["path"], int(d["size"])) for d in line["disks"]),
            nics=tuple(nic["alias"] for nic in line.get("nics", ())),
            peer_address=line.get("peer_address", ""),
            peer_port=line.get("peer_port"),
            create=line.get("arbitration", "resume") == "create",
            listen_address=line.get("listen_address", ""),
            port_range=(int(first), int(last)),
            resume=bool(line.get("resume", False)),
            sync_bandwidth=int(float(options.get("sync_mib_s", 0)) * (1 << 20)),
            delta_size=delta_size_of(options),
            base=_base(line.get("base")),
        )
    except KeyError as error:
        raise KvmftError(
            "worker_config",
            f"The worker's start line lacks {error}.",
            "Agent and worker must be of the same version; reinstall the kvmft wheel.",
        ) from error
