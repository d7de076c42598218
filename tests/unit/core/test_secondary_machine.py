"""The secondary's machine: acknowledged means activatable (I4), one commit (I3), no stale start (I5)."""

from __future__ import annotations

import pytest

from kvmft.core import events as ev
from kvmft.core.secondary import Patience, SecondaryMachine, StandbyPhase


def kinds(effects: list[ev.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


class Driver:
    def __init__(self) -> None:
        self.machine = SecondaryMachine(Patience(agent_grace=4.0))
        self.now = 5.0
        self.all: list[ev.Effect] = []

    def __call__(self, event: ev.Event, after: float = 0.0) -> list[str]:
        self.now += after
        effects = self.machine.handle(event, self.now)
        self.all += effects
        return kinds(effects)

    def commit(self, epoch: int) -> None:
        self(ev.Staged(epoch))
        self(ev.Committed(epoch))
        self(ev.Applied(epoch))

    def to_ready(self) -> Driver:
        self.commit(1)
        self(ev.Offered(b"record"))
        self(ev.OfferPersisted())
        return self


def test_an_acknowledgement_needs_the_commit() -> None:
    drive = Driver()
    assert drive(ev.Staged(1)) == ["Commit"]
    assert drive(ev.Committed(1)) == ["SendAck", "Apply"]


def test_nothing_is_applied_before_it_is_committed() -> None:
    drive = Driver().to_ready()
    drive(ev.Staged(2))
    assert not any(isinstance(each, ev.Apply) and each.epoch == 2 for each in drive.all)


def test_the_offer_is_acknowledged_after_it_is_durable() -> None:
    drive = Driver()
    drive.commit(1)
    assert drive(ev.Offered(b"record")) == ["PersistOffer"]
    assert drive(ev.OfferPersisted())[0] == "SendOfferAck"


def test_an_incomplete_replica_never_claims() -> None:
    drive = Driver()
    drive.commit(1)
    effects = drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    assert effects == ["DropPeer", "Discard", "Report", "Finish"]


def test_silence_claims_at_once_and_a_win_activates_the_last_commit() -> None:
    drive = Driver().to_ready()
    drive.commit(2)
    assert drive(ev.PeerLost(ev.Loss.SILENCE, "silent")) == ["DropPeer", "Report", "StartClaim"]
    assert drive(ev.Claimed(won=True)) == ["DropPeer", "Activate"]
    assert drive.all[-1] == ev.Activate(2)
    assert drive(ev.Activated()) == ["Report", "Finish"]


def test_activation_waits_until_the_commit_is_applied_whole() -> None:
    drive = Driver().to_ready()
    drive(ev.Staged(2))
    drive(ev.Committed(2))
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    assert drive(ev.Claimed(won=True)) == ["DropPeer"]
    assert drive(ev.Applied(2)) == ["Activate"]


def test_a_checkpoint_that_was_not_committed_is_not_activated() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    assert drive(ev.Staged(2)) == []
    drive(ev.Claimed(won=True))
    assert drive.all[-1] == ev.Activate(1)


def test_a_closed_connection_gives_the_agent_time_and_then_claims() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.CLOSED, "reset"))
    assert drive.machine.phase is StandbyPhase.WAITING
    assert drive(ev.Tick(), after=1.0) == []
    assert "StartClaim" in drive(ev.Tick(), after=3.1)


def test_a_lost_claim_discards_the_replica() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    effects = drive(ev.Claimed(won=False, reason="the primary went solo"))
    assert effects == ["DropPeer", "Discard", "Report", "Finish"]
    assert not any(isinstance(each, ev.Activate) for each in drive.all)


def test_a_refusing_primary_ends_the_standby_without_a_claim() -> None:
    drive = Driver().to_ready()
    effects = drive(ev.PeerLost(ev.Loss.REFUSED, "turned off on request"))
    assert "StartClaim" not in effects and "Discard" in effects


def test_a_farewell_that_hands_over_claims_at_once() -> None:
    drive = Driver().to_ready()
    assert "StartClaim" in drive(ev.PeerLost(ev.Loss.FAREWELL, "QEMU died"))


def test_recovery_applies_the_journal_again_before_any_claim() -> None:
    drive = Driver()
    assert drive(ev.Recovered(7)) == ["Apply", "WakeAt"]
    drive(ev.Applied(7))
    assert "StartClaim" in drive(ev.Tick(), after=4.1)
    drive(ev.Claimed(won=True))
    assert drive.all[-1] == ev.Activate(7)


def test_a_person_may_order_it_only_when_a_commit_exists() -> None:
    drive = Driver()
    with pytest.raises(ev.IllegalEvent):
        drive(ev.ClaimAsked())
    assert "StartClaim" in Driver().to_ready()(ev.ClaimAsked())


def test_an_ordered_failover_keeps_the_link_until_the_verdict() -> None:
    drive = Driver().to_ready()
    assert "DropPeer" not in drive(ev.ClaimAsked())
    assert drive(ev.Staged(2)) == [], "and acknowledges nothing any more"
    assert drive(ev.Claimed(won=True)) == ["DropPeer", "Activate"]


def test_a_halted_claim_keeps_the_replica_for_a_person() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    effects = drive(ev.Claimed(won=False, halted=True, reason="the record is gone"))
    assert "Discard" not in effects and "Activate" not in effects


@pytest.mark.parametrize("event", [ev.Staged(3), ev.Claimed(won=True), ev.Welcomed()])
def test_an_illegal_event_changes_nothing(event: ev.Event) -> None:
    drive = Driver().to_ready()
    before = dict(vars(drive.machine))
    with pytest.raises(ev.IllegalEvent):
        drive(event)
    assert vars(drive.machine) == before


def test_the_next_checkpoint_waits_for_the_application_of_the_last() -> None:
    drive = Driver().to_ready()
    drive(ev.Staged(2))
    drive(ev.Committed(2))
    with pytest.raises(ev.IllegalEvent):
        drive(ev.Staged(3))
