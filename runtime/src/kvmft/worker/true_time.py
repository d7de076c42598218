"""The protected VM's clock, kept from the first epoch on until the worker leaves; where that fails, people are told."""

from __future__ import annotations

from kvmft.adapters.reactor import Reactor
from kvmft.worker.config import WorkerConfig
from kvmft.worker.guest_clock import ClockKeeper, keep_clock
from kvmft.worker.link import AgentLink


class TrueTime:
    """At most one ClockKeeper; without one every call does nothing."""

    def __init__(self, reactor: Reactor, config: WorkerConfig, link: AgentLink) -> None:
        self._reactor = reactor
        self._config = config
        self._link = link
        self._clock: ClockKeeper | None = None

    def begin(self) -> None:
        """Keep the clock from now on, where that is wanted and the VM has one of KVM's."""
        if self._config.true_time:
            self._clock = keep_clock(self._config.qemu_pid, self._config.realtime, self._clock_failed)

    def _clock_failed(self, reason: str) -> None:
        def tell() -> None:
            self.leave()
            self._link.event("clock_not_kept", f"the guest's clock loses the pauses from here on: {reason}")

        self._reactor.call_soon_threadsafe(tell)

    @property
    def behind(self) -> float | None:
        """Seconds that the clock is behind; None where it is not kept."""
        return self._clock.behind if self._clock else None

    def pausing(self) -> None:
        """The VM is about to be stopped by us."""
        if self._clock is not None:
            self._clock.pausing(self._reactor.now())

    def running(self, now: float) -> None:
        """It runs again, since `now`."""
        if self._clock is not None:
            self._clock.running(now)

    def leave(self) -> None:
        """Leave the clock alone."""
        if self._clock is not None:
            self._clock.stop()
            self._clock = None
