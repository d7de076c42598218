"""The simulated worker of the side on which the VM runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmft.core import events as ev
from kvmft.core.detector import DETECTION
from kvmft.core.pacing import Pace
from kvmft.core.primary import Phase, PrimaryMachine, Tuning
from kvmft.sim.claims import SimClaims
from kvmft.sim.history import Point
from kvmft.sim.qemu import Qemu
from kvmft.sim.watch import FIRST_SYNC_PATIENCE
from kvmft.sim.worker import Worker

if TYPE_CHECKING:
    from kvmft.sim.host import Host

TUNING = Tuning(Pace(interval=0.2, min_interval=0.03), hold_bound=0.6, switch_bound=0.8)


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
