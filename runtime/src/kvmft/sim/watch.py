"""One side's doubt: its detector looks at a peer that something may have silenced, until it hears it.

As long as nothing is wrong, heartbeats arrive and nothing is decided: no event is needed for that.
What the detector says is checked against what really went through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmft.core.detector import DETECTION, EXCUSES, FT_SILENCE, SilenceDetector

if TYPE_CHECKING:
    from kvmft.sim.world import Connection, World

LATENCY = 0.002
FIRST_SYNC_PATIENCE = 1.5
EVERY = DETECTION / 4


class Management:
    """The management network, as far as beacons go: each direction may be cut, and all may be lost or late."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cut = [False, False]
        self.lossy = 0.0
        self.late = 0.0

    def beacon(self, watch: Watch) -> None:
        """The peer of `watch` sends one."""
        world, end = self.world, watch.end
        if self.cut[1 - watch.side]:
            return
        if self.lossy and world.rng.random() < self.lossy:
            world.count("lost beacon")
            return
        delay = self.late * world.rng.random() if self.late else LATENCY
        world.at(delay, end.host, end, watch.hear_beacon)


class Watch:
    """What the process on host `side` makes of the silence of its peer, from now on."""

    def __init__(self, connection: Connection, side: int) -> None:
        self.connection = connection
        self.side = side
        self.end: Any = connection.ends[side]
        self.world = connection.world
        self.begun = now = self.world.now
        patience = self.end.patience
        self.detector = SilenceDetector(patience, max(patience, FT_SILENCE), now)
        self._looks = self._excuses = 0
        self._excused = 0.0
        self._looked = now
        self._beacon_at, self._looks_at_beacon = -1e9, 0
        if connection.beacons:
            self.hear_beacon()
        self._later(EVERY * (0.2 + self.world.rng.random()))

    def hear_beacon(self) -> None:
        """One arrived."""
        self.detector.beacon(self.world.now)
        self._beacon_at, self._looks_at_beacon = self.world.now, self._looks

    def _later(self, delay: float) -> None:
        self.world.at(delay, self.end.host, self.end, self._look)

    def _look(self) -> None:
        connection, world = self.connection, self.world
        if not connection.open[self.side]:
            return
        peer = connection.ends[1 - self.side]
        still = (
            not peer.host.alive
            or peer.host.frozen_until > world.now
            or not connection.open[1 - self.side]
        )
        if not still:
            if not connection.wire.cut[1 - self.side]:
                return
            if connection.beacons:
                connection.wire.management.beacon(self)
        self._looks += 1
        if world.now - self._looked > self.detector.timeout / 2 and self._excuses < EXCUSES:
            self._excuses += 1
            self._excused += self.detector.timeout / 2
        self._looked = world.now
        self.detector.timeout = min(self.detector.timeout, self.end.patience)
        self.detector.log_timeout = max(self.detector.timeout, FT_SILENCE)
        suspects = self.detector.suspects(world.now)
        self._check(suspects)
        if suspects:
            world.count(
                "silence of both" if self._no_beacons() else "silence of the FT log alone"
            )
            self.end.lost(False, "no sign of life")
            return
        self._later(EVERY)

    def _no_beacons(self) -> bool:
        """The other network is silent as well."""
        return self.world.now - self._beacon_at > self.detector.timeout

    def _check(self, suspects: bool) -> None:
        """The detector's word against what went through. Looks, not seconds, are counted where it bears silence: a
        process that was starved itself cannot look, and may wait for half a time-out more for each time."""
        now, timeout = self.world.now, self.detector.timeout
        limit = max(timeout, FT_SILENCE)
        if suspects:
            if now - self.begun <= (timeout if self._no_beacons() else limit):
                self.world.forbid("detection", "a peer that shows life is suspected")
            return
        grace = self._excused + 2 * EVERY
        if self._looks * EVERY > limit + grace:
            self.world.forbid("detection", "a FT log that stays silent is borne for ever")
        if (self._looks - self._looks_at_beacon) * EVERY > timeout + grace:
            self.world.forbid("detection", "silence of both networks goes unnoticed")
