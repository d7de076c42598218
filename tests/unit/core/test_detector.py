"""The silence detector: quick, and fair when this process itself was starved."""

from __future__ import annotations

from kvmft.core.detector import SilenceDetector


def ticks(detector: SilenceDetector, start: float, end: float) -> bool:
    suspicious, now = False, start
    while now <= end:
        suspicious = detector.suspects(now)
        now += detector.timeout / 4
    return suspicious


def test_silence_longer_than_the_timeout_is_suspected() -> None:
    assert ticks(SilenceDetector(0.3, 0.0), 0.0, 0.5)


def test_a_sign_of_life_resets_it() -> None:
    detector = SilenceDetector(0.3, 0.0)
    assert not ticks(detector, 0.0, 0.2)
    detector.heard(0.25)
    assert not ticks(detector, 0.3, 0.5)


def test_own_starvation_is_not_the_peers_death() -> None:
    detector = SilenceDetector(0.3, 0.0)
    assert not detector.suspects(0.1)
    assert not detector.suspects(5.0), "we slept; the peer gets time to be heard"
    assert ticks(detector, 5.05, 5.4)
