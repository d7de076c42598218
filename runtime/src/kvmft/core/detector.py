"""When silence means loss.

There are two signs of life: the FT log, and the beacons of the management network. A peer that is
silent on both is gone. A FT log that is silent while beacons come is most likely a TCP
retransmission or a starved worker, so it is given longer; but a VM without a FT log is protected by
nothing and its output waits, so not for ever. Beacons alone decide nothing: a cut of the management
network must not end protection, and people are told of it instead.

A false suspicion costs a re-sync and never data, because only the arbiter decides who runs; so the
detector may be quick. It must not mistake its own starvation for the peer's death: if this process
itself was not scheduled, it allows the peer another half time-out to be heard.
"""

from __future__ import annotations

from dataclasses import dataclass

DETECTION, FT_SILENCE = 0.3, 0.8
"""Seconds; the defaults of `detection_ms` and `ft_silence_ms`."""
BEACONS_MISSED = 5.0
"""Seconds without a beacon, on a FT log that lives, after which people are told."""
EXCUSES = 3
"""So often in one silence its own starvation counts for the peer: one that is always starved must not be blind."""


@dataclass
class SilenceDetector:
    """Suspects the peer after `timeout` seconds without any sign of life, or after `log_timeout` without
    one on the FT log. Times in seconds; `log_timeout` below `timeout` counts as `timeout`."""

    timeout: float
    log_timeout: float
    now: float

    def __post_init__(self) -> None:
        self._log = self.now
        self._beacon: float | None = None  # None: none came yet
        self._awaited: float | None = None  # since when beacons may be expected
        self._told = False  # people know that there are none
        self._ticked = self.now
        self._excused_until = self.now
        self._excuses = 0

    def heard(self, now: float) -> None:
        """Something arrived on the FT log."""
        if now > self._log:
            self._log = now
            self._excuses = 0

    def beacon(self, now: float) -> None:
        """A beacon arrived."""
        self._beacon = now

    def await_beacons(self, now: float) -> None:
        """The peer said that it sends beacons: from now on it is noticed when none come."""
        self._awaited = now

    def silent_for(self, now: float) -> float:
        """Seconds since the last sign of life on the FT log."""
        return now - self._log

    def beacons_come(self, now: float) -> bool:
        """True while the last beacon is not older than `timeout`."""
        return self._beacon is not None and now - self._beacon <= self.timeout

    def suspects(self, now: float) -> bool:
        """To be asked at least every `timeout / 4`; true when the peer counts as lost."""
        if now - self._ticked > self.timeout / 2 and self._excuses < EXCUSES:
            self._excuses += 1
            self._excused_until = now + self.timeout / 2
        self._ticked = now
        if now < self._excused_until:
            return False
        lives = self.beacons_come(now)
        limit = max(self.timeout, self.log_timeout) if lives else self.timeout
        return self.silent_for(now) > limit

    def beacons_changed(self, now: float) -> bool | None:
        """False once when beacons are missing while the FT log lives, True once when they are back;
        None when there is nothing new to tell people."""
        if self._awaited is None:
            return None
        last = self._awaited if self._beacon is None else max(self._beacon, self._awaited)
        if self._told:
            self._told = not self.beacons_come(now)
            return None if self._told else True
        if now - last > BEACONS_MISSED and self.silent_for(now) <= self.timeout:
            self._told = True
            return False
        return None
