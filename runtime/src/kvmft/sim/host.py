"""A host with its agent: what is durable, what a restart finds, and the next step.

This follows `kvmft.agent.vm`: level-triggered, one step at a time, tried again a little later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmft.core.arbitration import Holdings
from kvmft.core.events import Outcome, StopAsked, SwitchAsked, VmDied
from kvmft.core.records import Mode
from kvmft.core.secondary import StandbyPhase
from kvmft.sim.history import History, Point
from kvmft.sim.primary import PrimaryWorker
from kvmft.sim.qemu import Qemu
from kvmft.sim.secondary import SecondaryWorker
from kvmft.sim.worker import ClaimWorker, Worker
from kvmft.sim.world import Connection, SimArbiter, Token, World

if TYPE_CHECKING:
    from kvmft.sim.cluster import Cluster

STEP = 0.3
RETRY = 0.4
AGENT_RESTART = 0.4
TAKEOVER_TIME = 3.0
TAKING_OVER = (StandbyPhase.LOADING, StandbyPhase.CLAIMING, StandbyPhase.ACTIVATING)


class Host:
    """One server. What a power cut takes and what it leaves is said at `power_off`."""

    def __init__(self, cluster: Cluster, index: int, name: str) -> None:
        self.cluster = cluster
        self.world: World = cluster.world
        self.arbiter: SimArbiter = cluster.arbiter
        self.history: History = cluster.history
        self.index = index
        self.name = name
        self.alive = True
        self.frozen_until = 0.0
        self.arbiter_cut = False
        self.boot = 1
        # durable
        self.role = "none"
        self.desired = "enabled"
        self.may_start = False
        self.ran = False
        self.seen_boot = 0
        self.session = 0
        self.holdings = Holdings()
        self.mark: int | None = None
        self.disk: Point | None = None
        # of this boot
        self.journal: tuple[int, Point] | None = None
        self.qemu: Qemu | None = None
        # of this agent
        self.agent = Token()
        self.worker: Worker | None = None
        self.shown = "disabled"
        self.crashed = False
        self.disk_synced = True
        self.disk_trouble = 0.0
        self.steps_to_live = 0
        self.dies_whole = False
        self._regain = False
        self._recover = False
        self._not_before = 0.0
        self._off_since: float | None = None
        self.world.at(0.0, self, self.agent, self._loop)

    @property
    def peer(self) -> Host:
        """The other host."""
        return self.cluster.hosts[1 - self.index]

    @property
    def vm_runs(self) -> bool:
        """True when libvirt here shows the VM as active, and not as a standby."""
        return self.qemu is not None and not self.qemu.dead and not self.qemu.standby

    # -- the agent's loop ---------------------------------------------------------------------------

    def _loop(self) -> None:
        if self.worker is None and self.world.now >= self._not_before:
            self._step()
        self.world.at(STEP, self, self.agent, self._loop)

    def _step(self) -> None:
        if self.role == "secondary" and self._recover:
            self._recover_secondary()
        elif self.role == "stale":
            if self.vm_runs:
                self._destroy()
        elif self.role == "primary":
            if not self.vm_runs:
                self._primary_is_off()
                return
            self._off_since, self.ran, self.seen_boot = None, True, self.boot
            if self._regain:
                self._start(PrimaryWorker(self, self._qemu(), self.peer.name, None))
            elif self.desired == "enabled":
                self._pair()
            else:
                self.shown = "suspended"

    def _qemu(self) -> Qemu:
        assert self.qemu is not None
        return self.qemu

    def _start(self, worker: PrimaryWorker | SecondaryWorker | ClaimWorker) -> None:
        self.worker = worker
        worker.start()

    def _pair(self) -> None:
        self._not_before = self.world.now + RETRY
        if not self.cluster.reachable(self, self.peer):
            return
        session = self.cluster.next_session()
        if not self.peer.prepare(session):
            return
        self.session, self.may_start = session, False
        self._start(PrimaryWorker(self, self._qemu(), self.peer.name, session))

    def _primary_is_off(self) -> None:
        rebooted = self.seen_boot != self.boot
        if self._off_since is None:
            self._off_since = self.world.now
        if self.may_start and self.ran and self.crashed and not rebooted:
            self._boot()
        elif self.may_start and not (self.ran and rebooted):
            self.ran, self.cluster.powered_off = False, True
            self.shown = "need_secondary"
        elif self.may_start:
            self._boot()
        elif rebooted or self.world.now >= self._off_since + TAKEOVER_TIME:
            self._start(ClaimWorker(self, self.peer.name))

    def _boot(self) -> None:
        """Start the VM from this host's disk."""
        if self.disk is None:
            self.world.forbid("I5", f"{self.name} boots from a disk that is a mixture")
            return
        self.may_run("boots")
        self.history.check_start(self.disk, "boots", "I5")
        self.seen_boot, self.ran, self.crashed = self.boot, True, False
        self.qemu = Qemu(self, self.history.begin(self.disk))
        self.qemu.running = True
        self.disk = self.qemu.point
        self.world.count("cold boot")
        self.world.note(self.name, "boots the VM from its disk")

    def may_run(self, what: str) -> None:
        """Check that the arbiter's newest record gives this host the right to run (I1)."""
        top = self.arbiter.top
        if self.arbiter.tampered or top is None:
            return
        if top.holder != self.name or (top.mode is not Mode.SOLO and what != "boots"):
            self.world.forbid("I1", f"{self.name} {what}, but generation {top.gen} is {top.holder}'s")

    # -- the standby --------------------------------------------------------------------------------

    def prepare(self, session: int) -> bool:
        """The peer asks for a standby; False when it is refused."""
        worker = self.worker
        if self.role == "primary" and self.vm_runs:
            return False
        if isinstance(worker, SecondaryWorker) and not worker.finished:
            if worker.machine.phase in TAKING_OVER:
                return False
            worker.post(StopAsked())
        if self.role == "secondary" and self.vm_runs:
            return False
        if worker is not None:
            worker.dead = True
            worker.drop()
        self._destroy()
        self.role, self.session, self.may_start, self.ran = "secondary", session, False, False
        self.desired, self.holdings = "enabled", Holdings()
        self.qemu = Qemu(self)
        self._recover = self._regain = False
        self._start(SecondaryWorker(self, self.qemu, self.peer.name, session))
        return True

    def discard(self) -> None:
        """The peer turned FT off: let the standby go."""
        worker = self.worker
        if self.role != "secondary":
            return
        if isinstance(worker, SecondaryWorker) and worker.machine.phase in TAKING_OVER:
            return
        if worker is not None:
            worker.dead = True
            worker.drop()
            self.worker = None
        self._go_stale()

    def accept(self, primary: PrimaryWorker, session: int | None) -> Connection | None:
        """The primary's worker connects to the standby of `session`."""
        worker = self.worker
        if (
            not isinstance(worker, SecondaryWorker)
            or worker.session != session
            or worker.connection is not None
            or worker.finished
            or worker.dead
            or not self.cluster.reachable(primary.host, self)
        ):
            return None
        ends: list[Any] = [None, None]
        ends[primary.host.index], ends[self.index] = primary, worker
        # Every fourth pairing is with a version before beacons.
        worker.connection = Connection(self.cluster.wire, ends, beacons=worker.session % 4 != 0)
        return worker.connection

    def _recover_secondary(self) -> None:
        self._recover = False
        if self.qemu is None or self.qemu.dead:
            if self._may_have_won:
                self._start(ClaimWorker(self, self.peer.name))
            else:
                self._go_stale()
            return
        worker = SecondaryWorker(self, self.qemu, self.peer.name, self.session)
        self.worker = worker
        worker.resume()

    @property
    def _may_have_won(self) -> bool:
        """True when this side was claiming, or had won: its disks were durable before it asked."""
        held = self.holdings
        return bool(held.written) or any(record.mode is Mode.SOLO for record in held.bases)

    def _go_stale(self) -> None:
        self.role = "stale"
        self._destroy()
        self.shown = "disabled"

    def _destroy(self) -> None:
        if self.qemu is not None:
            self.qemu.dead, self.qemu.running = True, False
            self.qemu = None

    # -- conclusions --------------------------------------------------------------------------------

    def worker_ended(self, worker: Worker, outcome: Outcome | None) -> None:
        """Draw the conclusion from how a worker ended (None: it was killed)."""
        if self.worker is not worker:
            return
        worker.dead = True
        self.worker = None
        if self.role == "secondary":
            if worker.role == "claim" and outcome is Outcome.SOLO:
                self.role, self.may_start = "primary", True
                self._boot()
            elif outcome in (None, Outcome.UNSETTLED):
                if outcome is Outcome.UNSETTLED:
                    self._destroy()
                self._recover, self._not_before = True, self.world.now + 0.3
            elif outcome is Outcome.ACTIVATED:
                self.role, self.may_start, self.ran = "primary", True, True
                self.seen_boot, self._regain, self.desired = self.boot, False, "enabled"
                self._not_before = self.world.now + 0.3
            elif outcome is Outcome.FAILED and self._may_have_won:
                # Not in step with the primary's tries: it can prepare a standby only in between.
                pause = RETRY * (1 + self.world.rng.random())
                self._recover, self._not_before = True, self.world.now + pause
            else:
                self._go_stale()
            return
        self._not_before = self.world.now + RETRY
        if outcome is Outcome.HANDED_OVER:
            self.role, self.may_start, self.ran = "stale", False, False
        elif outcome is Outcome.FENCED:
            self.role, self.may_start = "stale", False
            self._destroy()
            self.shown = "fenced"
        elif outcome in (Outcome.SOLO, Outcome.DETACHED):
            self.may_start, self._regain = True, False
            if worker.role == "claim":
                self._boot()
            elif self.qemu is None or self.qemu.dead:
                self.cluster.powered_off = outcome is Outcome.DETACHED
            if self.desired == "disabled" and self.cluster.reachable(self, self.peer):
                self.peer.discard()
        else:
            self._regain = not self.may_start
            if worker.role == "claim":
                self.shown = "fenced"

    # -- what happens to it -------------------------------------------------------------------------

    def kill_agent(self) -> None:
        """kill -9: its workers die with it, the kernel closes their connections."""
        if self.agent.dead or not self.alive:
            return
        self.world.note(self.name, "the agent is killed")
        self.agent.dead = True
        self._kill_worker(self.worker)
        if self.qemu is not None:
            self.qemu.captured = []
        boot = self.boot
        self.world.at(AGENT_RESTART, self, None, self._agent_starts, boot)

    def kill_worker(self) -> None:
        """kill -9 of the worker alone; the agent sees it end without a word."""
        worker = self.worker
        if worker is None or not self.alive or self.agent.dead:
            return
        self._kill_worker(worker)
        self.worker = worker
        if self.qemu is not None:
            self.qemu.captured = []
        self.world.at(0.01, self, self.agent, self.worker_ended, worker, None)

    def _kill_worker(self, worker: Worker | None) -> None:
        if worker is not None:
            connection = worker.connection
            worker.dead = True
            if connection is not None:
                connection.close(self.index)
        self.worker = None

    def _agent_starts(self, boot: int) -> None:
        if not self.alive or boot != self.boot or not self.agent.dead:
            return
        self.agent = Token()
        self.worker = None
        self._regain = self.role == "primary" and not self.may_start
        self._recover = self.role == "secondary"
        self._not_before = 0.0
        self._off_since = None
        self.steps_to_live = 0
        self.world.note(self.name, "the agent starts")
        self.world.at(0.0, self, self.agent, self._loop)

    def power_off(self) -> None:
        """Everything in memory is gone; state, claims, mark and disk stay as they are."""
        if not self.alive:
            return
        self.world.note(self.name, "loses power")
        self.alive = False
        self.frozen_until = 0.0
        self.agent.dead = True
        for connection in list(self.cluster.wire.connections):
            connection.gone(self.index)
            connection.doubt(1 - self.index)
        if self.worker is not None:
            self.worker.dead = True
            self.worker = None
        self._destroy()
        self.journal = None
        if not self.disk_synced:
            self.disk = None  # what was applied was partly in the page cache

    def power_on(self) -> None:
        """The host boots, and its agent starts."""
        if self.alive:
            return
        self.world.note(self.name, "has power again")
        self.alive = True
        self.boot += 1
        self._agent_starts(self.boot)

    def freeze(self, seconds: float) -> None:
        """Nothing of this host runs for a while; then it goes on as if nothing had been."""
        if not self.alive:
            return
        self.world.note(self.name, f"is frozen for {seconds:.1f} s")
        self.frozen_until = self.world.now + seconds
        for connection in list(self.cluster.wire.connections):
            connection.doubt(1 - self.index)

    def kill_qemu(self) -> None:
        """kill -9 of the VM's or the standby's QEMU."""
        qemu = self.qemu
        if qemu is None or qemu.dead:
            return
        self.world.note(self.name, "QEMU is killed")
        self.crashed = not qemu.standby
        qemu.dead, qemu.running = True, False
        self._tell_death("QEMU died", False)

    def shut_down_guest(self) -> None:
        """The guest powers itself off."""
        qemu = self.qemu
        if qemu is None or qemu.dead or qemu.standby or not qemu.running:
            return
        self.world.note(self.name, "the guest powers off")
        self.crashed = False
        qemu.dead, qemu.running = True, False
        if self.worker is None:
            self.ran, self.cluster.powered_off = False, self.may_start
        self._tell_death("the guest powered off", True)

    def _tell_death(self, reason: str, powered_off: bool) -> None:
        worker = self.worker
        if worker is None or worker.finished or worker.role == "claim":
            return
        if worker.role == "secondary":
            worker.send("REFUSAL", reason)
        worker.later(0.001, VmDied(reason, powered_off))

    # -- orders -------------------------------------------------------------------------------------

    def order_switch(self) -> None:
        """A person asks for a planned switchover."""
        if isinstance(self.worker, PrimaryWorker) and self.worker.machine.protected:
            self.world.note(self.name, "a planned switchover is ordered")
            self.worker.post(SwitchAsked())

    def order_suspend(self) -> None:
        """A person suspends protection."""
        if isinstance(self.worker, PrimaryWorker):
            self.desired = "suspended"
            self.worker.post(StopAsked(suspend=True))

    def order_disable(self) -> None:
        """A person turns fault tolerance off."""
        if isinstance(self.worker, PrimaryWorker):
            self.desired = "disabled"
            self.worker.post(StopAsked())
