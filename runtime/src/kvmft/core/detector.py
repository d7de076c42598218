"""When silence means loss.

A false suspicion costs a re-sync and never data, because only the arbiter decides who runs; so the
detector may be quick. It must not mistake its own starvation for the peer's death: if this process
itself was not scheduled, it allows the peer another half time-out to be heard.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SilenceDetector:
    """Suspects the peer after `timeout` seconds without a sign of life. Times in seconds."""

    timeout: float
    now: float

    def __post_init__(self) -> None:
        self._heard = self.now
        self._ticked = self.now

    def heard(self, now: float) -> None:
        """Something arrived from the peer."""
        self._heard = max(self._heard, now)

    def silent_for(self, now: float) -> float:
        """Seconds since the last sign of life."""
        return now - self._heard

    def suspects(self, now: float) -> bool:
        """To be asked at least every `timeout / 4`; true when the peer counts as lost."""
        late = now - self._ticked > self.timeout / 2
        self._ticked = now
        if late:
            self._heard = max(self._heard, now - self.timeout / 2)
        return self.silent_for(now) > self.timeout
