"""What the primary's worker tells its agent twice a second: its state, and the figures of its epochs."""

from __future__ import annotations

from kvmft.adapters.reactor import Reactor
from kvmft.core.primary import PrimaryMachine
from kvmft.worker.claims import Claims
from kvmft.worker.first_sync import FirstSync
from kvmft.worker.link import AgentLink
from kvmft.worker.output import HeldOutput
from kvmft.worker.peerlink import PeerLink
from kvmft.worker.stats import EpochStats, quantiles
from kvmft.worker.true_time import TrueTime

STATUS_EVERY = 0.5


class PrimaryStatus:
    """Collects from those who know, and sends."""

    def __init__(
        self,
        reactor: Reactor,
        link: AgentLink,
        machine: PrimaryMachine,
        claims: Claims,
        peer: PeerLink,
        sync: FirstSync,
        output: HeldOutput,
        clock: TrueTime,
    ) -> None:
        self._reactor = reactor
        self._link = link
        self._machine = machine
        self._claims = claims
        self._peer = peer
        self._sync = sync
        self._output = output
        self._clock = clock
        self._ended = False
        self.state = ("starting", "attaching")
        self.stats = EpochStats(reactor.now())

    def start(self) -> None:
        """Send every STATUS_EVERY seconds from now on."""
        self._reactor.call_later(STATUS_EVERY, self._status_timer)

    def epochs_begin(self) -> None:
        """Count anew: what was before were the pauses of the first sync."""
        self.stats = EpochStats(self._reactor.now())

    def end(self) -> None:
        """The worker is done."""
        self._ended = True

    def _status_timer(self) -> None:
        self.send()
        if not self._ended:
            self._reactor.call_later(STATUS_EVERY, self._status_timer)

    def send(self) -> None:
        """Send the state and the figures of this moment."""
        now = self._reactor.now()
        stats = self.stats
        sent = self._peer.sent_bytes
        stats.sample(now, sent)
        since = round((now - stats.last_commit) * 1000, 1) if stats.last_commit else None
        self._link.send(
            msg="status",
            state=self.state[0],
            reason=self.state[1],
            generation=self._claims.generation,
            epoch=self._machine.acked,
            epochs=stats.epochs,
            interval_ms=quantiles(stats.gaps)["p50"],
            objective_missed=self._machine.pacer.shortfall() if self._machine.protected else None,
            beacons_missed=self._peer.life.beacons_missed if self._machine.protected else None,
            last_commit_age_ms=since,
            sync_percent=self._sync.percent,
            pause_ms=quantiles(stats.pauses),
            commit_ms=quantiles(stats.commits),
            pages_per_epoch=quantiles(stats.pages),
            log_bandwidth_bytes_s=round(max(0.0, stats.bandwidth)),
            held_bytes=self._output.held_bytes,
            guest_clock_loss_ppm=round(stats.clock_loss_ppm(now, self._clock.behind)),
            sync=self._sync.figures(),
            totals=stats.totals(sent),
        )
