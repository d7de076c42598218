"""What the workers do around the core's machines: effects carried out, events fed back.

The order of effects and the moments at which a process may be killed are those of `kvmft.worker`;
bytes, system calls and QEMU are abstracted to points of the VM's history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmft.core import events as ev
from kvmft.core.arbitration import Holdings
from kvmft.core.pacing import Pace
from kvmft.core.primary import Phase, PrimaryMachine, Tuning
from kvmft.core.secondary import Patience, SecondaryMachine, StandbyPhase
from kvmft.errors import KvmftError
from kvmft.sim.claims import SimClaims
from kvmft.sim.history import Point
from kvmft.sim.world import DETECTION, FIRST_SYNC_PATIENCE, Connection, Token

if TYPE_CHECKING:
    from kvmft.sim.hosts import Host

TUNING = Tuning(Pace(interval=0.2, min_interval=0.03), hold_bound=0.6, switch_bound=0.8)
PATIENCE = Patience(agent_grace=0.8)


class Qemu(Token):
    """A QEMU process: a VM that runs or is stopped, or a standby that waits."""

    __slots__ = (
        "captured", "epochs_mark", "frozen_until", "hold", "host", "instance", "loaded", "memory",
        "running", "tick",
    )  # fmt: skip

    def __init__(self, host: Host, instance: int = -1, tick: int = 0) -> None:
        super().__init__()
        self.host = host
        self.instance = instance
        self.tick = tick
        self.running = False
        self.hold = False  # output goes through the worker's hands
        self.epochs_mark = False
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
        self._wake = 0
        self._do: dict[type, Callable[[Any], None]] = {}

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
                    if self.host.steps_to_live:
                        self.may_die()
                        if self.dead:
                            return
                    try:
                        self._do[type(effect)](effect)
                    except OSError as error:
                        self.step_failed(str(error))
        finally:
            self._busy = False

    def later(self, delay: float, event: ev.Event) -> None:
        """Post `event` in `delay` seconds."""
        self.world.at(delay, self.host, self, self.post, event)

    def step_failed(self, reason: str) -> None:
        """A step on this side failed."""
        self.post(ev.Failed(reason))

    def wake_at(self, effect: ev.WakeAt) -> None:
        """A tick at the due time; the one asked for before does not come."""
        self._wake += 1
        delay = max(0.0, effect.due - self.world.now)
        self.world.at(delay, self.host, self, self._tick, self._wake)

    def _tick(self, number: int) -> None:
        if number == self._wake:
            self.post(ev.Tick())

    def report(self, effect: ev.Report) -> None:
        """Tell people."""
        self.host.shown = effect.state
        if self.world.log is not None:
            self.world.note(self.host.name, f"{effect.state}: {effect.reason[:70]}")

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
        self._do = {
            ev.StartClaim: self._start_claim,
            ev.Connect: self._connect,
            ev.StartBulk: self._start_bulk,
            ev.TakeRound: lambda effect: self.later(0.01, ev.RoundDone(0)),
            ev.InstallHold: lambda effect: self.world.at(0.01, self.host, self, self._hold),
            ev.TakeCheckpoint: self._take,
            ev.ReleaseOutput: self._release,
            ev.NameOffer: lambda effect: self.send("OFFER", self.claims.name_pair(effect.epoch)),
            ev.ReleaseAll: self._begin_release_all,
            ev.PauseVm: self._pause,
            ev.ResumeVm: self._resume,
            ev.KillVm: self._kill,
            ev.HandOver: self._hand_over,
            ev.KeepMemory: self._keep_memory,
            ev.Farewell: lambda effect: self.send("BYE", (effect.reason, effect.claim)),
            ev.DropPeer: lambda effect: self.drop(),
            ev.WakeAt: self.wake_at,
            ev.Report: self.report,
            ev.Finish: self.finish,
        }

    def finish(self, effect: ev.Finish) -> None:
        """The worker is done; where FT was turned off, the record goes too."""
        if effect.outcome is ev.Outcome.DETACHED and self.host.desired == "disabled":
            self.claims.remove()
        super().finish(effect)

    @property
    def patience(self) -> float:
        """Seconds of silence that are borne: more until there is a pair."""
        return DETECTION if self.machine.phase is Phase.EPOCHS else FIRST_SYNC_PATIENCE

    def start(self) -> None:
        """Attach, and hand the first event to the machine."""
        if not self.qemu.running and self.qemu.epochs_mark:
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

    def _start_claim(self, effect: ev.StartClaim) -> None:
        self.world.note(self.host.name, f"claims: {effect.purpose.value}")
        if effect.purpose is ev.Purpose.CREATE:
            self.claims.create()
        elif effect.purpose is ev.Purpose.PAIR:
            self.claims.pair()
        else:
            self.claims.solo()

    def _connect(self, _effect: ev.Connect) -> None:
        self.qemu.hold = False  # redirectors of a worker before are taken out
        self.connection = self.host.peer.accept(self, self.session)
        if self.connection is None:
            self.later(0.1, ev.Failed("the standby does not answer"))
        else:
            self.send("HELLO")

    def _start_bulk(self, _effect: ev.StartBulk) -> None:
        self.send("BULK")
        self.later(0.05 + 0.1 * self.world.rng.random(), ev.BulkDone())

    def _take(self, effect: ev.TakeCheckpoint) -> None:
        delay = max(0.0, self.qemu.frozen_until - self.world.now)
        self.world.at(
            delay + 0.003, self.host, self, self._capture, effect.epoch, effect.last
        )

    def _pause(self, _effect: ev.PauseVm) -> None:
        self.qemu.running = False
        self.world.note(self.host.name, "the VM is paused")
        self.world.count("paused at the bound")

    def _resume(self, _effect: ev.ResumeVm) -> None:
        self.qemu.running = not self.qemu.dead

    def _kill(self, _effect: ev.KillVm) -> None:
        self.world.note(self.host.name, "fenced")
        self.world.count("fenced")
        self.qemu.dead, self.qemu.running = True, False

    def _keep_memory(self, _effect: ev.KeepMemory) -> None:
        self.qemu.dead, self.qemu.running = True, False
        self.world.count("switchover")

    def _hold(self) -> None:
        if not self.qemu.dead:
            self.qemu.hold = self.qemu.epochs_mark = True
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

    def _release(self, effect: ev.ReleaseOutput) -> None:
        for number in sorted(number for number in self.held if number <= effect.epoch):
            for point in self.held.pop(number):
                if not self.host.cluster.was_committed(self.session, number):
                    self.world.forbid("I2", f"output of epoch {number} left before its commit")
                self.host.history.show(point)

    def _hand_over(self, _effect: ev.HandOver) -> None:
        if self.qemu.running:
            self.world.forbid("I3", "a VM that still runs is handed over")
        self.send("HANDOVER")

    def _begin_release_all(self, _effect: ev.ReleaseAll) -> None:
        self._check_right()
        self.world.at(0.005, self.host, self, self._release_all)

    def _check_right(self) -> None:
        host, top = self.host, self.host.arbiter.top
        if top is not None and top.holder != host.name and not host.arbiter.tampered:
            self.world.forbid("I1", f"{host.name} opens its output, but {top.holder} has {top.gen}")

    def _release_all(self) -> None:
        qemu, host = self.qemu, self.host
        if qemu.dead:
            return
        self._check_right()
        for epoch in sorted(self.held):
            for point in self.held[epoch]:
                host.history.show(point)
        self.held.clear()
        for point in qemu.captured:
            host.history.show(point)
        qemu.captured, qemu.hold, qemu.epochs_mark = [], False, False
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
        self._do = {
            ev.Commit: self._commit,
            ev.SendAck: self._send_ack,
            ev.Apply: self._apply,
            ev.PersistOffer: self._persist_offer,
            ev.SendOfferAck: self._send_offer_ack,
            ev.StartClaim: self._start_claim,
            ev.Load: self._begin_load,
            ev.Run: self._run,
            ev.SendRelief: lambda effect: self.send("RELIEVED"),
            ev.Discard: self._discard,
            ev.DropPeer: lambda effect: self.drop(),
            ev.WakeAt: self.wake_at,
            ev.Report: self.report,
            ev.Finish: self.finish,
        }

    @property
    def patience(self) -> float:
        """Seconds of silence that are borne: more until there is a pair."""
        return DETECTION if self.machine.phase is StandbyPhase.READY else FIRST_SYNC_PATIENCE

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
                trouble = self.host.disk_trouble
                if trouble and self.world.rng.random() < trouble:
                    self.world.count("journal full")
                    self.send("REFUSAL", "the journal is full")
                    self.drop()
                    self.lost(False, "the journal is full")
                    return
                self.staged = value
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

    def step_failed(self, reason: str) -> None:
        """A step on this side failed: the primary is told."""
        self._fail(reason)

    def _commit(self, effect: ev.Commit) -> None:
        assert self.staged is not None
        self.host.journal = self.staged
        self.host.cluster.commits.add((self.session, effect.epoch))
        self.post(ev.Committed(effect.epoch))

    def _send_ack(self, effect: ev.SendAck) -> None:
        journal = self.host.journal
        if journal is None or journal[0] < effect.epoch:
            self.world.forbid("I4", f"epoch {effect.epoch} is acknowledged, but not committed")
        self.send("ACK", effect.epoch)

    def _apply(self, effect: ev.Apply) -> None:
        self.host.disk = self.qemu.memory = None
        self.host.disk_synced = False
        self.world.at(0.002, self.host, self, self._applied, effect.epoch)

    def _persist_offer(self, effect: ev.PersistOffer) -> None:
        try:
            self.claims.accept_offer(effect.record)
        except KvmftError as error:
            self._fail(str(error))
            return
        if self.host.steps_to_live:
            self.may_die()
            if self.dead:
                return
        self.host.mark = self.session
        self.post(ev.OfferPersisted())

    def _send_offer_ack(self, _effect: ev.SendOfferAck) -> None:
        if self.host.mark != self.session or not self.host.holdings.bases:
            self.world.forbid("I4", "an offer is acknowledged that is not durable")
        self.send("OFFER_ACK")

    def _start_claim(self, _effect: ev.StartClaim) -> None:
        self.world.note(self.host.name, "claims: solo")
        self.claims.solo()

    def _discard(self, _effect: ev.Discard) -> None:
        host = self.host
        host.journal, host.mark, host.holdings = None, None, Holdings()

    def _applied(self, epoch: int) -> None:
        host = self.host
        if host.journal is None or not self.filled:
            self._fail("the journal does not hold the commit")
            return
        host.disk = self.qemu.memory = host.journal[1]
        self.post(ev.Applied(epoch))

    def _begin_load(self, effect: ev.Load) -> None:
        self._check_whole(effect.epoch)
        self.world.at(0.01, self.host, self, self._load, effect.epoch)

    def _check_whole(self, epoch: int) -> None:
        journal, memory, disk = self.host.journal, self.qemu.memory, self.host.disk
        if journal is None or journal[0] != epoch or not journal[1] == memory == disk:
            self.world.forbid(
                "I3", f"loads epoch {epoch} of {journal} over memory {memory} and disk {disk}"
            )

    def _load(self, epoch: int) -> None:
        host, qemu = self.host, self.qemu
        if qemu.dead or host.journal is None:
            return
        if self.world.rng.random() < host.disk_trouble:
            qemu.dead = True
            self._fail("QEMU refused the device state")
            return
        self._check_whole(epoch)
        qemu.loaded = host.journal[1]
        host.disk_synced = True
        self.post(ev.Loaded())

    def _run(self, _effect: ev.Run) -> None:
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
        self.claims.create()

    def decided(self, won: bool, halted: bool, reason: str) -> None:
        """The verdict is the outcome."""
        outcome = ev.Outcome.SOLO if won else ev.Outcome.FAILED if halted else ev.Outcome.FENCED
        self.world.note(self.host.name, f"may it start: {outcome.value} ({reason[:50]})")
        self.finish(ev.Finish(outcome, reason))
