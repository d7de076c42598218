"""Two hosts, what is between them, and the guest that runs on one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmft.core.secondary import StandbyPhase
from kvmft.sim.history import History
from kvmft.sim.host import Host
from kvmft.sim.primary import PrimaryWorker
from kvmft.sim.qemu import Qemu
from kvmft.sim.secondary import SecondaryWorker
from kvmft.sim.world import SimArbiter, Token, Wire, World


class Cluster:
    """The whole: two hosts, their network, the arbiter, one VM."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.arbiter = SimArbiter(world)
        self.history = History(world)
        self.wire = Wire(world)
        self.commits: set[tuple[int, int]] = set()
        self.powered_off = False
        self.chaos = Token()
        self._sessions = 0
        self.hosts = [Host(self, 0, "a"), Host(self, 1, "b")]
        first = self.hosts[0]
        first.role, first.may_start = "primary", True
        first.qemu = Qemu(first, self.history.begin((-1, 0)))
        first.qemu.running = True
        first.disk = first.qemu.point
        world.at(0.01, None, None, self._live)

    def later(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        """Have a fault, or the end of one, happen in `delay` seconds, unless all is healed then."""
        self.world.at(delay, None, self.chaos, act, *args)

    def next_session(self) -> int:
        """A number for a new session."""
        self._sessions += 1
        return self._sessions

    def reachable(self, one: Host, other: Host) -> bool:
        """True when a request of `one` is answered by the agent of `other`."""
        return (
            other.alive
            and not other.agent.dead
            and other.frozen_until <= self.world.now
            and not self.wire.cut[one.index]
            and not self.wire.cut[other.index]
        )

    def was_committed(self, session: int | None, epoch: int) -> bool:
        """True when a secondary made this epoch survive a kill of its worker."""
        return (session, epoch) in self.commits

    def _live(self) -> None:
        """The guest works: it writes to its disk and then answers a client."""
        world = self.world
        for host in self.hosts:
            qemu = host.qemu
            if qemu is None or not qemu.running or qemu.dead or not host.alive:
                continue
            if max(host.frozen_until, qemu.frozen_until) > world.now:
                continue
            qemu.tick += 1
            host.disk = qemu.point
            if not qemu.hold:
                self.history.show(qemu.point)
            elif isinstance(host.worker, PrimaryWorker) and host.worker.qemu is qemu:
                host.worker.output(qemu.point)
        world.at(0.05 + 0.2 * world.rng.random(), None, None, self._live)

    @property
    def protected(self) -> bool:
        """True when the VM is protected, as both sides see it."""
        workers = [host.worker for host in self.hosts]
        one = next((each for each in workers if isinstance(each, PrimaryWorker)), None)
        other = next((each for each in workers if isinstance(each, SecondaryWorker)), None)
        return (
            one is not None
            and other is not None
            and one.machine.protected
            and one.qemu.running
            and other.machine.phase is StandbyPhase.READY
            and one.connection is not None
            and one.connection is other.connection
        )
