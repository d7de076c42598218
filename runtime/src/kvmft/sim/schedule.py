"""One schedule: pair, let faults happen, heal, and see that the system comes to life again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kvmft.sim.cluster import Cluster
from kvmft.sim.faults import BEACON_KINDS, KINDS, heal
from kvmft.sim.world import World

FAULT_TIME = 1.5
PATIENCE = 60.0
"""Simulated seconds in which protection has to be back after everything was healed."""
BEACON_FAULTS_EVERY = 5
"""Every so many-th schedule has faults of the second network besides."""

_NAMES = list(KINDS)
_WEIGHTS = [weight for __, weight in KINDS.values()]


@dataclass
class Result:
    """How a schedule went. `log` is empty unless it was asked for."""

    seed: int
    violations: list[str]
    counts: dict[str, int]
    log: list[str] = field(default_factory=list)


def run(seed: int, trace: bool = False) -> Result:
    """Run the schedule of `seed`."""
    log: list[str] | None = [] if trace else None
    world = World(seed, log)
    try:
        _play(world, seed)
    except Exception as error:  # whatever breaks is a finding, and the seed replays it
        world.forbid("crash", f"{type(error).__name__}: {error}")
    return Result(seed, world.violations, world.counts, log or [])


def _play(world: World, seed: int) -> None:
    cluster = Cluster(world)
    rng = world.rng
    if rng.random() < 0.8:
        world.run(20.0, lambda: cluster.protected)
        if not cluster.protected and not world.violations:
            world.forbid("liveness", "no protection without any fault")
    begun = world.now
    for __ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        name = rng.choices(_NAMES, _WEIGHTS)[0]
        world.count(f"fault {name}")
        cluster.later(FAULT_TIME * rng.random(), _strike, cluster, name, KINDS[name][0])
    if seed % BEACON_FAULTS_EVERY == 0:
        apart = random.Random(seed)
        for name in apart.choices(list(BEACON_KINDS), k=apart.randrange(1, 4)):
            world.count(f"fault {name}")
            cluster.later(FAULT_TIME * apart.random(), _strike, cluster, name, BEACON_KINDS[name])
    world.run(begun + FAULT_TIME + 2.0 * rng.random())
    if not world.violations:
        world.note("all", "everything is healed")
        heal(cluster)
        world.run(world.now + 0.5)  # so that what broke last is noticed
        world.run(world.now + PATIENCE, lambda: cluster.protected or _may_end(cluster))
        if not world.violations and not cluster.protected and not _may_end(cluster):
            shown = {host.name: (host.role, host.shown) for host in cluster.hosts}
            world.forbid("liveness", f"not protected again: {shown}")


def _strike(cluster: Cluster, name: str, fault: Callable[[Cluster], None]) -> None:
    cluster.world.note("fault", name)
    fault(cluster)


def _may_end(cluster: Cluster) -> bool:
    """True where a person acts next: the guest is off, the arbiter lost data, or the record was
    removed when FT was turned off and the answer to that was lost."""
    return cluster.powered_off or cluster.arbiter.tampered or cluster.arbiter.removed_unseen
