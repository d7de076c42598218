"""The simulated worker of the side of the standby."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmft.core import events as ev
from kvmft.core.arbitration import Holdings
from kvmft.core.detector import DETECTION
from kvmft.core.secondary import Patience, SecondaryMachine, StandbyPhase
from kvmft.errors import KvmftError
from kvmft.sim.claims import SimClaims
from kvmft.sim.history import Point
from kvmft.sim.qemu import Qemu
from kvmft.sim.watch import FIRST_SYNC_PATIENCE
from kvmft.sim.worker import Worker

if TYPE_CHECKING:
    from kvmft.sim.host import Host

PATIENCE = Patience(agent_grace=0.8)


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
            ev.DrawInput: self._draw_input,
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

    def _draw_input(self, _effect: ev.DrawInput) -> None:
        """From now on nobody hears a VM that runs elsewhere."""
        self.world.count("input drawn")
        for host in self.host.cluster.hosts:
            if host.vm_runs:
                self.world.forbid("input", f"packets are drawn away from the VM that runs on {host.name}")

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
