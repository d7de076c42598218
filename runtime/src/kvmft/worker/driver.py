"""A worker's turn: its machine hears of events one at a time, and each effect is carried out, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from kvmft.adapters.reactor import Reactor, Timer
from kvmft.core import events as ev
from kvmft.errors import KvmftError
from kvmft.worker.link import AgentLink


class Machine(Protocol):
    """What decides: `core.primary` or `core.secondary`."""

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """The effects of `event` at `now` (seconds, monotonic); IllegalEvent when it changes nothing."""


class Driver:
    """Between a machine and what carries out its effects. `on_failed` gets why an effect failed."""

    def __init__(
        self,
        reactor: Reactor,
        link: AgentLink,
        machine: Machine,
        commands: dict[type, Callable[[Any], None]],
        on_failed: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._link = link
        self._machine = machine
        self._commands = {ev.WakeAt: self._wake_at, **commands}
        self._on_failed = on_failed
        self._queue: deque[ev.Event] = deque()
        self._busy = False
        self._wake: Timer | None = None
        self.finished = False
        """Once true, events are no longer handled."""

    def post(self, event: ev.Event) -> None:
        """Give the machine an event and carry out its effects, one event at a time, in order."""
        self._queue.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue and not self.finished:
                current = self._queue.popleft()
                try:
                    effects = self._machine.handle(current, self._reactor.now())
                except ev.IllegalEvent as error:
                    self._link.event("ignored", str(error))
                    continue
                for effect in effects:
                    self._carry_out(effect)
        finally:
            self._busy = False

    def _carry_out(self, effect: ev.Effect) -> None:
        try:
            self._commands[type(effect)](effect)
        except (KvmftError, OSError) as error:
            self._link.event("failed", f"{type(effect).__name__}: {error}")
            self._on_failed(str(error))

    def _wake_at(self, effect: ev.WakeAt) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._reactor.call_at(effect.due, lambda: self.post(ev.Tick()))
