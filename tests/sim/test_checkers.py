"""The simulator's own checks: known-bad histories are seen."""

from __future__ import annotations

from kvmft.core import events as ev
from kvmft.core import records
from kvmft.sim.claims import CLUSTER
from kvmft.sim.cluster import Cluster
from kvmft.sim.history import History
from kvmft.sim.primary import PrimaryWorker
from kvmft.sim.schedule import FAULT_TIME
from kvmft.sim.secondary import SecondaryWorker
from kvmft.sim.world import World


def protected() -> Cluster:
    """A pair that is protected, with no fault under way."""
    world = World(1, [])
    cluster = Cluster(world)
    world.run(20.0, lambda: cluster.protected)
    assert cluster.protected and world.violations == []
    return cluster


def found(cluster: Cluster) -> list[str]:
    return [text.split(":")[0] for text in cluster.world.violations]


def test_two_histories_that_are_both_shown() -> None:
    world = World(1)
    history = History(world)
    first = history.begin((-1, 0))
    second = history.begin((first, 5))
    history.show((first, 4))
    history.show((second, 1))
    assert world.violations == []
    history.show((first, 5))  # late, but of the common past
    assert world.violations == []
    history.show((first, 6))
    assert len(world.violations) == 1 and world.violations[0].startswith("I1")


def test_something_seen_that_the_next_instance_forgot() -> None:
    world = World(1)
    history = History(world)
    first = history.begin((-1, 0))
    history.show((first, 7))
    history.check_start((first, 7), "is activated", "I3")
    assert world.violations == []
    history.check_start((first, 6), "is activated", "I3")
    assert world.violations and world.violations[0].startswith("I3")


def test_output_before_its_commit() -> None:
    cluster = protected()
    worker = cluster.hosts[0].worker
    assert isinstance(worker, PrimaryWorker)
    worker.held[99] = [worker.qemu.point]
    worker._release(ev.ReleaseOutput(99))
    assert found(cluster) == ["I2"]


def test_output_opened_without_the_right() -> None:
    cluster = protected()
    worker = cluster.hosts[0].worker
    assert isinstance(worker, PrimaryWorker)
    top = cluster.arbiter.top
    assert top is not None
    cluster.arbiter.top = records.solo(top, "b", "a", "0" * 32)
    worker._begin_release_all(ev.ReleaseAll())
    assert found(cluster) == ["I1"]


def test_an_ack_and_an_offer_that_are_not_durable() -> None:
    cluster = protected()
    worker = cluster.hosts[1].worker
    assert isinstance(worker, SecondaryWorker)
    worker._send_ack(ev.SendAck(10**6))
    cluster.hosts[1].mark = None
    worker._send_offer_ack(ev.SendOfferAck())
    assert found(cluster) == ["I4", "I4"]


def test_a_mixture_is_loaded_and_an_unmarked_replica_runs() -> None:
    cluster = protected()
    host = cluster.hosts[1]
    worker = host.worker
    assert isinstance(worker, SecondaryWorker) and host.journal is not None and host.qemu is not None
    host.disk = (0, 0)
    worker._check_whole(host.journal[0])
    host.qemu.loaded, host.mark = host.journal[1], None
    worker._run(ev.Run())
    assert found(cluster)[:2] == ["I3", "I5"]
    assert "I1" in found(cluster), "it ran although the arbiter names the other side"


def test_a_boot_from_a_mixture_or_without_the_right() -> None:
    cluster = protected()
    host = cluster.hosts[1]
    host.disk = None
    host._boot()
    assert found(cluster) == ["I5"]
    host.disk = (0, 10**6)
    host._boot()
    assert found(cluster) == ["I5", "I1"]


def test_a_system_that_stands_still_is_not_alive() -> None:
    cluster = protected()
    assert cluster.arbiter.value is not None
    assert records.from_bytes(cluster.arbiter.value, CLUSTER).mode is records.Mode.PAIRED
    cluster.hosts[1].power_off()
    cluster.world.run(cluster.world.now + FAULT_TIME)
    assert not cluster.protected
