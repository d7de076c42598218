"""What goes wrong in a schedule: kinds of faults, drawn by the seed, and how they heal."""

from __future__ import annotations

from collections.abc import Callable

from kvmft.core.events import ClaimAsked, Loss, PeerLost
from kvmft.sim.cluster import Cluster
from kvmft.sim.host import Host
from kvmft.sim.primary import PrimaryWorker
from kvmft.sim.secondary import SecondaryWorker


def _host(cluster: Cluster) -> Host:
    return cluster.hosts[cluster.world.rng.randrange(2)]


def _primary(cluster: Cluster) -> Host:
    """The host where the VM runs, as far as anybody can say."""
    return next((host for host in cluster.hosts if host.vm_runs), cluster.hosts[0])


def power_cut(cluster: Cluster) -> None:
    """A host loses power and gets it back."""
    host = _host(cluster)
    host.power_off()
    cluster.later(0.5 + 4 * cluster.world.rng.random(), host.power_on)


def blackout(cluster: Cluster) -> None:
    """Both hosts lose power, a moment apart, and return in any order."""
    rng = cluster.world.rng
    for host in cluster.hosts:
        cluster.later(0.6 * rng.random() * rng.randrange(2), host.power_off)
        cluster.later(0.7 + 4 * rng.random(), host.power_on)


def kill_qemu(cluster: Cluster) -> None:
    """A QEMU is killed."""
    _host(cluster).kill_qemu()


def kill_agent(cluster: Cluster) -> None:
    """An agent is killed; systemd starts it again."""
    _host(cluster).kill_agent()


def kill_worker(cluster: Cluster) -> None:
    """A worker is killed, its agent lives."""
    _host(cluster).kill_worker()


def kill_between(cluster: Cluster) -> None:
    """An agent dies between two steps of its worker, at any of them."""
    host = _host(cluster)
    host.steps_to_live, host.dies_whole = cluster.world.rng.randrange(1, 40), False


def power_between(cluster: Cluster) -> None:
    """A host loses power between two steps of its worker."""
    host = _host(cluster)
    host.steps_to_live, host.dies_whole = cluster.world.rng.randrange(1, 40), True


def freeze(cluster: Cluster) -> None:
    """A host stands still, and goes on as if nothing had been."""
    _host(cluster).freeze(0.1 + 4 * cluster.world.rng.random() ** 2)


def freeze_qemu(cluster: Cluster) -> None:
    """Only the VM stands still."""
    qemu = _primary(cluster).qemu
    if qemu is not None:
        qemu.frozen_until = cluster.world.now + 2 * cluster.world.rng.random()


def cut_both(cluster: Cluster) -> None:
    """The FT network is cut, both ways."""
    for direction in (0, 1):
        cluster.wire.set_cut(direction, True)
        _mend(cluster, direction)


def cut_one(cluster: Cluster) -> None:
    """The FT network is cut in one direction."""
    direction = cluster.world.rng.randrange(2)
    cluster.wire.set_cut(direction, True)
    _mend(cluster, direction)


def cut_management(cluster: Cluster) -> None:
    """The management network is cut for beacons, both ways or one way."""
    for direction in _directions(cluster):
        _silence(cluster, direction)


def cut_networks(cluster: Cluster) -> None:
    """Both networks are cut, both ways or one way, and mended at different times."""
    for direction in _directions(cluster):
        cluster.wire.set_cut(direction, True)
        _mend(cluster, direction)
        _silence(cluster, direction)


def _directions(cluster: Cluster) -> tuple[int, ...]:
    rng = cluster.world.rng
    return (0, 1) if rng.random() < 0.5 else (rng.randrange(2),)


def _silence(cluster: Cluster, direction: int) -> None:
    cluster.wire.management.cut[direction] = True
    cluster.later(0.1 + 3 * cluster.world.rng.random(), _hear, cluster, direction)


def _hear(cluster: Cluster, direction: int) -> None:
    cluster.wire.management.cut[direction] = False


def beacons_unreliable(cluster: Cluster) -> None:
    """Beacons are lost, late and out of order, and the FT log breaks now and then."""
    rng, management = cluster.world.rng, cluster.wire.management
    management.lossy, management.late = 0.7 * rng.random(), 0.6 * rng.random()
    cluster.later(4 * rng.random(), _beacons_reliable, cluster)
    cut_one(cluster)


def _beacons_reliable(cluster: Cluster) -> None:
    cluster.wire.management.lossy = cluster.wire.management.late = 0.0


def _mend(cluster: Cluster, direction: int) -> None:
    delay = 0.1 + 3 * cluster.world.rng.random()
    cluster.later(delay, cluster.wire.set_cut, direction, False)


def cut_arbiter(cluster: Cluster) -> None:
    """One or both hosts do not reach the arbiter."""
    rng = cluster.world.rng
    for host in cluster.hosts if rng.random() < 0.5 else [_host(cluster)]:
        host.arbiter_cut = True
        cluster.later(0.2 + 3 * rng.random(), _reach, host)


def _reach(host: Host) -> None:
    host.arbiter_cut = False


def arbiter_down(cluster: Cluster) -> None:
    """The arbiter is away."""
    cluster.arbiter.down = True
    cluster.later(0.2 + 3 * cluster.world.rng.random(), _arbiter_up, cluster)


def _arbiter_up(cluster: Cluster) -> None:
    cluster.arbiter.down = False


def arbiter_unreliable(cluster: Cluster) -> None:
    """Requests and answers are lost, late and doubled."""
    cluster.arbiter.unreliable = 0.8
    cluster.later(4 * cluster.world.rng.random(), _reliable, cluster)


def _reliable(cluster: Cluster) -> None:
    cluster.arbiter.unreliable = 0.0


def disk_trouble(cluster: Cluster) -> None:
    """The secondary's disk is full, or its writes fail."""
    host = _host(cluster)
    host.disk_trouble = 0.5
    cluster.later(2 * cluster.world.rng.random(), _disk_well, host)


def _disk_well(host: Host) -> None:
    host.disk_trouble = 0.0


def false_alarm(cluster: Cluster) -> None:
    """A side takes its living peer for lost: it was starved of processor time."""
    worker = _host(cluster).worker
    if isinstance(worker, (PrimaryWorker, SecondaryWorker)) and worker.connection is not None:
        worker.post(PeerLost(Loss.SILENCE, "a false alarm"))


def order_failover(cluster: Cluster) -> None:
    """A person orders the secondary to take over."""
    for host in cluster.hosts:
        if isinstance(host.worker, SecondaryWorker):
            host.worker.post(ClaimAsked())


def order_switch(cluster: Cluster) -> None:
    """A person orders a planned switchover."""
    _primary(cluster).order_switch()


def suspend(cluster: Cluster) -> None:
    """A person suspends protection for a while."""
    host = _primary(cluster)
    host.order_suspend()
    cluster.later(1.0 + cluster.world.rng.random(), _resume, host)


def _resume(host: Host) -> None:
    host.desired = "enabled"


def disable(cluster: Cluster) -> None:
    """A person turns fault tolerance off, and on again later."""
    host = _primary(cluster)
    host.order_disable()
    cluster.later(1.0 + cluster.world.rng.random(), _resume, host)


def shut_down(cluster: Cluster) -> None:
    """The guest powers itself off."""
    _primary(cluster).shut_down_guest()


def wipe_arbiter(cluster: Cluster) -> None:
    """The arbiter's data is lost."""
    cluster.arbiter.wipe()


def roll_back_arbiter(cluster: Cluster) -> None:
    """An old copy of the arbiter's data is restored."""
    cluster.arbiter.roll_back()


KINDS: dict[str, tuple[Callable[[Cluster], None], int]] = {
    fault.__name__: (fault, weight)
    for fault, weight in (
        (power_cut, 10), (blackout, 4), (kill_qemu, 8), (kill_agent, 8), (kill_between, 10),
        (power_between, 8), (freeze, 8), (freeze_qemu, 2), (cut_both, 8), (cut_one, 6),
        (cut_arbiter, 6), (arbiter_down, 5), (arbiter_unreliable, 10), (disk_trouble, 5),
        (false_alarm, 8), (order_failover, 4), (order_switch, 12), (suspend, 3), (shut_down, 2),
        (wipe_arbiter, 1),
        (kill_worker, 8), (disable, 3),
    )
}  # fmt: skip
"""Each kind of fault, with its weight in the draw."""

BEACON_KINDS: dict[str, Callable[[Cluster], None]] = {
    fault.__name__: fault for fault in (cut_management, cut_networks, beacons_unreliable)
}
"""Faults of the second network. They are drawn apart, so that a seed that once found something stays that schedule."""


def heal(cluster: Cluster) -> None:
    """Everything outside works again: networks, arbiter, disks, power; no more faults come."""
    cluster.chaos.dead = True
    for direction in (0, 1):
        cluster.wire.set_cut(direction, False)
        _hear(cluster, direction)
    _beacons_reliable(cluster)
    cluster.arbiter.down, cluster.arbiter.unreliable = False, 0.0
    for host in cluster.hosts:
        host.arbiter_cut, host.disk_trouble, host.steps_to_live = False, 0.0, 0
        host.power_on()
        if host.role == "primary":
            host.desired = "enabled"
