"""What the workers do around the core's machines: effects carried out, events fed back.

The order of effects and the moments at which a process may be killed are those of `kvmft.worker`;
bytes, system calls and QEMU are abstracted to points of the VM's history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmft.core import events as ev
from kvmft.sim.claims import SimClaims
from kvmft.sim.world import Connection, Token

if TYPE_CHECKING:
    from kvmft.sim.host import Host


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
