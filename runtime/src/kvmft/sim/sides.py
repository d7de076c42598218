"""What the workers do around the core's machines: effects carried out, events fed back.

The order of effects and the moments at which a process may be killed are those of `kvmft.worker`;
bytes, system calls and QEMU are abstracted to points of the VM's history.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from kvmft.core import events as ev
from kvmft.core.primary import PrimaryMachine, Tuning
from kvmft.core.secondary import Patience, SecondaryMachine, StandbyPhase
from kvmft.errors import KvmftError
from kvmft.sim.claims import SimClaims
from kvmft.sim.history import Point
from kvmft.sim.world import Connection, Token

if TYPE_CHECKING:
    from kvmft.sim.hosts import Host

TUNING = Tuning(interval=0.2, min_interval=0.03, hold_bound=0.6, switch_bound=0.8)
PATIENCE = Patience(agent_grace=0.8)


class Qemu(Token):
    """A QEMU process: a VM that runs or is stopped, or a standby that waits."""

    __slots__ = (
        "captured", "disk_log", "frozen_until", "hold", "host", "instance", "kept", "loaded",
        "memory", "mirror", "running", "tick",
    )  # fmt: skip

    def __init__(self, host: Host, instance: int = -1, tick: int = 0) -> None:
        super().__init__()
        self.host = host
        self.instance = instance
        self.tick = tick
        self.running = False
        self.hold = False  # output goes through the worker's hands
        self.captured: list[Point] = []
        self.memory: Point | None = None  # of a standby: what was applied
        self.loaded: Point | None = None
        self.frozen_until = 0.0

    @property
    def standby(self) -> bool:
        """True while it waits for a commit to run from."""
        return self.instance < 0

    @property
    def point(self) -> Point:
        """How far the VM came."""
        return (self.instance, self.tick)


class Worker(Token):
    """A worker process on `host`: the queue around a machine."""

    role = ""

    def __init__(self, host: Host, machine: Any) -> None:
        super().__init__()
        self.host = host
        self.world = host.world
        self.machine = machine
        self.connection: Connection | None = None
        self.finished = False
        self._queue: deque[ev.Event] = deque()
        self._busy = False

    def may_die(self) -> None:
        """A place at which a kill may strike."""
        host = self.host
        if host.steps_to_live:
            host.steps_to_live -= 1
            if host.steps_to_live == 0:
                self.world.count("killed between effects")
                (host.power_off if host.dies_whole else host.kill_agent)()

    def post(self, event: ev.Event) -> None:
        """Give the machine an event and carry out its effects, in order."""
        if self.dead or self.finished:
            return
        self._queue.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue and not self.dead and not self.finished:
                current = self._queue.popleft()
                try:
                    effects = self.machine.handle(current, self.world.now)
                except ev.IllegalEvent:
                    self.world.count("illegal event")
                    continue
                for effect in effects:
                    self.may_die()
                    if self.dead:
                        return
                    self.carry_out(effect)
        finally:
            self._busy = False

    def later(self, delay: float, event: ev.Event) -> None:
        """Post `event` in `delay` seconds."""
        self.world.at(delay, self.host, self, self.post, event)

    def carry_out(self, effect: ev.Effect) -> None:
        """Do what the machine wants."""
        raise NotImplementedError

    def lost(self, closed: bool, reason: str) -> None:
        """The connection was closed or is silent."""
        self.post(ev.PeerLost(ev.Loss.CLOSED if closed else ev.Loss.SILENCE, reason))

    def send(self, kind: str, value: Any = None) -> None:
        """Send a frame to the peer."""
        if self.connection is not None:
            self.connection.send(self.host.index, kind, value)

    def drop(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close(self.host.index)
            self.connection = None

    def finish(self, effect: ev.Finish) -> None:
        """The worker is done; the agent draws its conclusion."""
        self.finished = True
        self.drop()
        self.world.note(self.host.name, f"{self.role} ends: {effect.outcome.value}")
        self.world.at(0.001, self.host, self.host.agent, self.host.worker_ended, self, effect.outcome)

    def decided(self, won: bool, halted: bool, reason: str) -> None:
        """A claim ended."""
        verdict = "won" if won else "halted" if halted else "lost"
        self.world.note(self.host.name, f"verdict {verdict}: {reason[:60]}")
        self.post(ev.Claimed(won, halted, reason))


class PrimaryWorker(Worker):
    """The side on which the VM runs."""

    role = "primary"

    def __init__(self, host: Host, qemu: Qemu, peer: str, session: int | None) -> None:
        super().__init__(host, PrimaryMachine(TUNING))
        self.qemu = qemu
        self.session = session
        self.claims = SimClaims(self.world, host.arbiter, self, peer, self.decided)
        self.held: dict[int, list[Point]] = {}

    def start(self) -> None:
        """Attach, and hand the first event to the machine."""
        if not self.qemu.running:
            self.qemu.running = True  # the worker before was killed inside a checkpoint
        self.post(ev.Started(create=True, has_peer=self.session is not None))

    def frame(self, kind: str, value: Any) -> None:
        """Something came from the secondary."""
        match kind:
            case "WELCOME":
                self.post(ev.Welcomed())
            case "ACK":
                self.post(ev.Acked(value))
            case "OFFER_ACK":
                self.post(ev.OfferStored())
            case "REFUSAL":
                self.post(ev.PeerLost(ev.Loss.REFUSED, str(value)))
            case "RELIEVED":
                self.post(ev.Relieved())

    def output(self, point: Point) -> None:
        """The VM sent a packet while its output is held."""
        self.qemu.captured.append(point)
        self.later(0.0, ev.OutputPending())

    def carry_out(self, effect: ev.Effect) -> None:
        """Do what the machine wants."""
        qemu, world = self.qemu, self.world
        match effect:
            case ev.StartClaim(purpose):
                world.note(self.host.name, f"claims: {purpose.value}")
                claims = self.claims
                {ev.Purpose.CREATE: claims.create, ev.Purpose.PAIR: claims.pair}.get(
                    purpose, claims.solo
                )()
            case ev.Connect():
                qemu.hold = False  # redirectors of a worker before are taken out
                self.connection = self.host.peer.accept(self, self.session)
                if self.connection is None:
                    self.later(0.1, ev.Failed("the standby does not answer"))
                else:
                    self.send("HELLO")
            case ev.StartBulk():
                self.send("BULK")
                self.later(0.05 + 0.1 * world.rng.random(), ev.BulkDone())
            case ev.TakeRound():
                self.later(0.01, ev.RoundDone(0))
            case ev.InstallHold():
                world.at(0.01, self.host, self, self._hold)
            case ev.TakeCheckpoint(epoch, last):
                delay = max(0.0, qemu.frozen_until - world.now)
                world.at(delay + 0.003, self.host, self, self._capture, epoch, last)
            case ev.ReleaseOutput(epoch):
                self._release(epoch)
            case ev.NameOffer(epoch):
                self.send("OFFER", self.claims.name_pair(epoch))
            case ev.ReleaseAll():
                world.at(0.005, self.host, self, self._release_all)
            case ev.PauseVm():
                qemu.running = False
                world.count("paused at the bound")
            case ev.ResumeVm():
                qemu.running = True
            case ev.KillVm():
                world.note(self.host.name, "fenced")
                world.count("fenced")
                qemu.dead, qemu.running = True, False
            case ev.HandOver():
                self.send("HANDOVER")
            case ev.KeepMemory():
                qemu.dead, qemu.running = True, False
                world.count("switchover")
            case ev.Farewell(reason, claim):
                self.send("BYE", (reason, claim))
            case ev.DropPeer():
                self.drop()
            case ev.WakeAt(due):
                self.later(max(0.0, due - world.now), ev.Tick())
            case ev.Report(state, reason):
                self.host.shown = state
                world.note(self.host.name, f"{state}: {reason[:70]}")
            case ev.Finish():
                self.finish(effect)
            case _:
                raise AssertionError(effect)

    def _hold(self) -> None:
        if not self.qemu.dead:
            self.qemu.hold = True
            self.post(ev.HoldInstalled())

    def _capture(self, epoch: int, last: bool) -> None:
        qemu = self.qemu
        if qemu.dead:
            return
        self.held[epoch], qemu.captured = qemu.captured, []
        if last:
            qemu.running = False
        self.send("CHECKPOINT", (epoch, qemu.point))
        self.post(ev.Captured(epoch, 0.003))

    def _release(self, epoch: int) -> None:
        for number in sorted(number for number in self.held if number <= epoch):
            for point in self.held.pop(number):
                if not self.host.cluster.was_committed(self.session, number):
                    self.world.forbid("I2", f"output of epoch {number} left before its commit")
                self.host.history.show(point)

    def _release_all(self) -> None:
        qemu, host = self.qemu, self.host
        if qemu.dead:
            return
        top = host.arbiter.top
        if top is not None and top.holder != host.name and not host.arbiter.tampered:
            self.world.forbid("I1", f"{host.name} opens its output, but {top.holder} has {top.gen}")
        for epoch in sorted(self.held):
            for point in self.held[epoch]:
                host.history.show(point)
        self.held.clear()
        for point in qemu.captured:
            host.history.show(point)
        qemu.captured, qemu.hold = [], False
        self.post(ev.Released())


class SecondaryWorker(Worker):
    """The side of the standby."""

    role = "secondary"

    def __init__(self, host: Host, qemu: Qemu, peer: str, session: int) -> None:
        super().__init__(host, SecondaryMachine(PATIENCE))
        self.qemu = qemu
        self.session = session
        self.claims = SimClaims(self.world, host.arbiter, self, peer, self.decided)
        self.staged: tuple[int, Point] | None = None
        self.filled = False

    def start(self) -> None:
        """Wait for the primary with an empty replica."""
        self.host.mark = None
        self.host.journal = None
        self.world.at(3.0, self.host, self, self._first_contact)

    def resume(self) -> None:
        """Recover the last commit after a restart of the agent."""
        journal = self.host.journal
        if journal is None or self.host.mark != self.session:
            self.post(ev.Failed("this replica had no complete commit"))
            return
        stage = ev.Stage.WAITING
        if not self.qemu.standby:
            stage = ev.Stage.RUNNING
        elif self.qemu.loaded is not None:
            stage = ev.Stage.LOADED
        self.world.count(f"recovered {stage.value}")
        self.filled = True
        self.post(ev.Recovered(journal[0], stage))

    def _first_contact(self) -> None:
        if self.connection is None and self.machine.phase is StandbyPhase.FILLING:
            self.post(ev.PeerLost(ev.Loss.SILENCE, "the primary never connected"))

    def frame(self, kind: str, value: Any) -> None:
        """Something came from the primary."""
        match kind:
            case "HELLO":
                self.send("WELCOME")
            case "BULK":
                self.host.disk = self.qemu.memory = None  # mixed, until the first commit
                self.host.disk_synced = False
                self.filled = True
            case "CHECKPOINT":
                self.staged = value
                if self.world.rng.random() < self.host.disk_trouble:
                    self._fail("the journal is full")
                    return
                self.post(ev.Staged(value[0]))
            case "OFFER":
                self.post(ev.Offered(value))
            case "HANDOVER":
                self.post(ev.ClaimAsked(planned=True))
            case "BYE":
                reason, claim = value
                how = ev.Loss.FAREWELL if claim else ev.Loss.REFUSED
                self.post(ev.PeerLost(how, reason))

    def _fail(self, reason: str) -> None:
        self.world.count("secondary fails")
        self.send("REFUSAL", reason)
        self._queue.append(ev.Failed(reason))
        if not self._busy:
            self.post(self._queue.pop())

    def carry_out(self, effect: ev.Effect) -> None:
        """Do what the machine wants."""
        host, world = self.host, self.world
        match effect:
            case ev.Commit(epoch):
                assert self.staged is not None
                host.journal = self.staged
                host.cluster.commits.add((self.session, epoch))
                self.post(ev.Committed(epoch))
            case ev.SendAck(epoch):
                if host.journal is None or host.journal[0] < epoch:
                    world.forbid("I4", f"epoch {epoch} is acknowledged, but not committed")
                self.send("ACK", epoch)
            case ev.Apply(epoch):
                host.disk = self.qemu.memory = None
                host.disk_synced = False
                world.at(0.002, host, self, self._applied, epoch)
            case ev.PersistOffer(record):
                if world.rng.random() < host.disk_trouble:
                    self._fail("the record cannot be stored")
                    return
                try:
                    self.claims.accept_offer(record)
                except KvmftError as error:
                    self._fail(str(error))
                    return
                self.may_die()
                if self.dead:
                    return
                host.mark = self.session
                self.post(ev.OfferPersisted())
            case ev.SendOfferAck():
                if host.mark != self.session or not host.holdings.bases:
                    world.forbid("I4", "an offer is acknowledged that is not durable")
                self.send("OFFER_ACK")
            case ev.StartClaim():
                world.note(host.name, "claims: solo")
                self.claims.solo()
            case ev.Load(epoch):
                world.at(0.01, host, self, self._load, epoch)
            case ev.Run():
                self._run()
            case ev.SendRelief():
                self.send("RELIEVED")
            case ev.Discard():
                host.journal = None
                host.holdings = type(host.holdings)()
                host.mark = None
            case ev.DropPeer():
                self.drop()
            case ev.WakeAt(due):
                self.later(max(0.0, due - world.now), ev.Tick())
            case ev.Report(state, reason):
                host.shown = state
                world.note(host.name, f"{state}: {reason[:70]}")
            case ev.Finish():
                self.finish(effect)
            case _:
                raise AssertionError(effect)

    def _applied(self, epoch: int) -> None:
        host = self.host
        if host.journal is None or not self.filled:
            self._fail("the journal does not hold the commit")
            return
        host.disk = self.qemu.memory = host.journal[1]
        self.post(ev.Applied(epoch))

    def _load(self, epoch: int) -> None:
        host, qemu = self.host, self.qemu
        if qemu.dead or host.journal is None:
            return
        if self.world.rng.random() < host.disk_trouble:
            qemu.dead = True
            self._fail("QEMU refused the device state")
            return
        device = host.journal[1]
        if not device == qemu.memory == host.disk or host.journal[0] != epoch:
            self.world.forbid(
                "I3", f"loads device state {device} over memory {qemu.memory} and disk {host.disk}"
            )
        qemu.loaded = device
        host.disk_synced = True
        self.post(ev.Loaded())

    def _run(self) -> None:
        host, qemu = self.host, self.qemu
        if qemu.dead:
            return
        if qemu.loaded is None:
            self.world.forbid("I3", "runs without having loaded a commit")
            return
        if host.mark != self.session:
            self.world.forbid("I5", "a replica runs that is not marked as complete")
        host.may_run("is activated")
        host.history.check_start(qemu.loaded, "is activated", "I3")
        qemu.instance = host.history.begin(qemu.loaded)
        qemu.tick, qemu.running = 0, True
        host.disk = qemu.point
        self.world.count("failover")
        self.world.note(host.name, "runs from its last commit")
        self.later(0.001, ev.Activated())


class ClaimWorker(Worker):
    """Asks whether a VM that is off may start here."""

    role = "claim"

    def __init__(self, host: Host, peer: str) -> None:
        super().__init__(host, None)
        self.claims = SimClaims(self.world, host.arbiter, self, peer, self.decided)

    def start(self) -> None:
        """Ask."""
        self.claims.solo()

    def decided(self, won: bool, halted: bool, reason: str) -> None:
        """The verdict is the outcome."""
        outcome = ev.Outcome.SOLO if won else ev.Outcome.FAILED if halted else ev.Outcome.FENCED
        self.world.note(self.host.name, f"may it start: {outcome.value} ({reason[:50]})")
        self.finish(ev.Finish(outcome, reason))


