"""Signs of life of both sides, on both networks: sending ours, and judging the peer's."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from kvmft.adapters.beacons import BeaconSocket
from kvmft.adapters.reactor import Reactor
from kvmft.core import beacon
from kvmft.core.detector import SilenceDetector
from kvmft.core.wire import WireError
from kvmft.errors import KvmftError
from kvmft.worker.config import WorkerConfig
from kvmft.worker.link import AgentLink

FIRST_SYNC_PATIENCE = 5.0
"""Seconds of silence that are borne until there is a pair."""
SIGNS = 8
"""Signs of life that are sent in the detection time."""


class Life:
    """Of one connection: from `begin` to `end`. The FT log is the owner's; beacons are handled here."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        link: AgentLink,
        paired: Callable[[], bool],
        heard: Callable[[], float],
        heartbeat: Callable[[], bool],
        lost: Callable[[str, float], None],
    ) -> None:
        """`paired`: whether silence is judged by the VM's own times. `heard`: when something came on the
        FT log last. `heartbeat` sends one there, False when it cannot now. `lost(reason, silence)` is
        told once of a peer that is silent for so many seconds."""
        self._reactor = reactor
        self._config = config
        self._link = link
        self._paired = paired
        self._heard = heard
        self._heartbeat = heartbeat
        self._lost = lost
        self._side = beacon.Side.PRIMARY if config.role == "primary" else beacon.Side.SECONDARY
        self._detector: SilenceDetector | None = None
        self._socket: BeaconSocket | None = None
        self._sender: beacon.Sender | None = None
        self._receiver: beacon.Receiver | None = None
        self._heartbeat_due = 0.0
        self._beacon_due = 0.0
        self.beacons_missed: str | None = None
        """Why the management network shows no life, in a sentence; None when it does, or when nobody may expect it to."""

    # -- the beginning and the end --------------------------------------------------------------------

    def begin(self) -> None:
        """The FT log is open: show life and judge from now on."""
        self.end()
        self.beacons_missed = None
        # Until there is a pair, silence decides nothing and only costs the work that was done.
        patience = max(self._config.detection, FIRST_SYNC_PATIENCE)
        self._detector = SilenceDetector(patience, patience, self._reactor.now())
        self._look_later(self._detector)

    def end(self) -> None:
        """No sign of life and no judgement any more."""
        self._detector = None
        self._close_socket()

    def _close_socket(self) -> None:
        self._sender = self._receiver = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # -- beacons --------------------------------------------------------------------------------------

    def offer(self) -> dict[str, Any] | None:
        """Where this side awaits beacons, for the peer to know; None where it cannot. People are told
        why, and the FT log alone tells silence then."""
        self._close_socket()
        paths = self._config.beacons
        if paths is None:
            return None
        try:
            self._socket = BeaconSocket(self._reactor, paths.address, paths.ports, self._datagram)
        except KvmftError as error:
            self._miss("no_beacons", f"only the FT log shows life: {error}")
            return None
        key = secrets.token_bytes(beacon.KEY_BYTES)
        self._receiver = beacon.Receiver(key, self._config.session, self._side.other)
        return beacon.offer(self._socket.port, key)

    def learn(self, offered: Any) -> None:
        """The peer says where it awaits beacons (None: nowhere, as versions before beacons do). WireError
        when it says nonsense."""
        found = beacon.read_offer(offered)
        paths = self._config.beacons
        if found is None or paths is None or self._socket is None or self._detector is None:
            return
        if self._sender is not None:
            raise WireError("The peer said a second time where it awaits beacons.")
        port, key = found
        try:
            self._socket.connect(paths.peer_address, port)
        except KvmftError as error:
            self._miss("no_beacons", f"only the FT log shows life: {error}")
            return
        self._sender = beacon.Sender(key, self._config.session, self._side)
        self._detector.await_beacons(self._reactor.now())

    def _datagram(self, data: bytes) -> None:
        if (
            self._receiver is not None
            and self._detector is not None
            and self._receiver.accept(data)
        ):
            self._detector.beacon(self._reactor.now())

    # -- both networks --------------------------------------------------------------------------------

    def show(self) -> None:
        """A heartbeat and a beacon, if the last ones are not of just now; also from within long work."""
        if self._detector is None:
            return
        now, every = self._reactor.now(), self._config.detection / SIGNS
        if now >= self._heartbeat_due and self._heartbeat():
            self._heartbeat_due = now + every
        if now >= self._beacon_due and self._socket is not None and self._sender is not None:
            self._beacon_due = now + every
            self._socket.send(self._sender.next())

    def look(self) -> bool:
        """Judge the peer now; False when it counts as lost, which `lost` was told."""
        detector = self._detector
        if detector is None:
            return True
        now = self._reactor.now()
        detector.heard(self._heard())
        if self._paired():
            detector.timeout = self._config.detection
            detector.log_timeout = self._config.ft_silence
        if detector.suspects(now):
            silence = detector.silent_for(now)
            beacons = detector.beacons_come(now)
            alone = (
                "on the FT log, though beacons of the management network come" if beacons else ""
            )
            self._lost(f"no sign of life for {silence * 1000:.0f} ms {alone}".strip(), silence)
            return False
        self._tell(detector.beacons_changed(now))
        return True

    def _look_later(self, detector: SilenceDetector) -> None:
        def look() -> None:
            if self.look() and self._detector is detector:
                self.show()
                self._look_later(detector)

        self._reactor.call_later(self._config.detection / SIGNS, look)

    def _tell(self, come: bool | None) -> None:
        if come is False:
            self._miss(
                "beacons_missed",
                f"no beacons come from {self._config.peer} on the management network: until they do, a "
                "FT log that stalls counts as a loss sooner. Check that network, and that UDP passes there",
            )
        elif come:
            self.beacons_missed = None
            self._link.event("beacons_back", f"beacons come from {self._config.peer} again")

    def _miss(self, event: str, reason: str) -> None:
        self.beacons_missed = f"{reason[0].upper()}{reason[1:].rstrip('.')}."
        self._link.event(event, reason)
