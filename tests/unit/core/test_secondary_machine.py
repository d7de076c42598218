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
    assert drive(ev.PeerLost(ev.Loss.SILENCE, "silent")) == ["DropPeer", "Report", "Load"]
    assert drive.all[-1] == ev.Load(2)
    assert drive(ev.Loaded()) == ["StartClaim"]
    assert drive(ev.Claimed(won=True)) == ["DropPeer", "Run"]
    assert drive(ev.Activated()) == ["Report", "Finish"]


def test_loading_waits_until_the_commit_is_applied_whole() -> None:
    drive = Driver().to_ready()
    drive(ev.Staged(2))
    drive(ev.Committed(2))
    assert drive(ev.PeerLost(ev.Loss.SILENCE, "silent")) == ["DropPeer", "Report"]
    assert drive(ev.Applied(2)) == ["Load"]


def test_a_commit_under_way_is_the_one_that_is_loaded() -> None:
    drive = Driver().to_ready()
    drive(ev.Staged(2))
    assert "Load" not in drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    assert "Load" not in drive(ev.Committed(2))
    drive(ev.Applied(2))
    assert drive.all[-1] == ev.Load(2)


def test_what_does_not_load_never_claims() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    drive(ev.Failed("QEMU refused the device state"))
    assert not any(isinstance(each, ev.StartClaim) for each in drive.all)


def test_a_planned_switchover_relieves_the_primary_after_it_runs() -> None:
    drive = Driver().to_ready()
    assert drive(ev.ClaimAsked(planned=True)) == ["Report", "Load"]
    assert drive(ev.Loaded()) == ["StartClaim"]
    assert drive(ev.Claimed(won=True)) == ["Run"], "the link is needed for the relief"
    assert drive(ev.Activated()) == ["SendRelief", "Report", "Finish"]


def test_a_stop_by_the_agent_is_obeyed_only_while_no_claim_can_be_under_way() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    for event in (ev.StopAsked(), ev.Loaded(), ev.StopAsked(), ev.Claimed(won=True)):
        assert "Discard" not in drive(event)
    assert "Discard" not in drive(ev.StopAsked())
    assert "Discard" in Driver().to_ready()(ev.StopAsked())


def test_a_worker_killed_after_its_claim_was_won_goes_on_where_qemu_is() -> None:
    assert Driver()(ev.Recovered(7, ev.Stage.RUNNING)) == ["Report", "Finish"]
    drive = Driver()
    assert drive(ev.Recovered(7, ev.Stage.LOADED)) == ["Report", "StartClaim"]
    assert drive(ev.Claimed(won=True)) == ["DropPeer", "Run"]


def test_a_checkpoint_that_was_not_committed_is_not_activated() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    assert drive.all[-1] == ev.Load(1)
    assert drive(ev.Staged(2)) == []


def test_a_closed_connection_gives_the_agent_time_and_then_claims() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.CLOSED, "reset"))
    assert drive.machine.phase is StandbyPhase.WAITING
    assert drive(ev.Tick(), after=1.0) == []
    assert "Load" in drive(ev.Tick(), after=3.1)


def test_a_lost_claim_discards_the_replica() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    drive(ev.Loaded())
    effects = drive(ev.Claimed(won=False, reason="the primary went solo"))
    assert effects == ["DropPeer", "Discard", "Report", "Finish"]
    assert not any(isinstance(each, ev.Run) for each in drive.all)


def test_a_refusing_primary_ends_the_standby_without_a_claim() -> None:
    drive = Driver().to_ready()
    effects = drive(ev.PeerLost(ev.Loss.REFUSED, "turned off on request"))
    assert "Load" not in effects and "Discard" in effects


def test_a_farewell_that_hands_over_claims_at_once_and_draws_the_vms_packets_here() -> None:
    drive = Driver().to_ready()
    assert drive(ev.PeerLost(ev.Loss.FAREWELL, "QEMU died")) == ["DropPeer", "DrawInput", "Report", "Load"]


def test_no_packet_is_drawn_away_from_a_vm_that_may_run() -> None:
    for event in (ev.PeerLost(ev.Loss.SILENCE, "silent"), ev.ClaimAsked(), ev.ClaimAsked(planned=True)):
        drive = Driver().to_ready()
        assert "Load" in drive(event)
        drive(ev.Loaded())
        drive(ev.Claimed(True))
        assert ev.DrawInput() not in drive.all
    for how in (ev.Loss.CLOSED, ev.Loss.REFUSED):
        assert "DrawInput" not in Driver().to_ready()(ev.PeerLost(how, "its process ended"))
    assert "DrawInput" not in Driver()(ev.PeerLost(ev.Loss.FAREWELL, "a replica that is incomplete draws nothing"))


def test_recovery_applies_the_journal_again_before_any_claim() -> None:
    drive = Driver()
    assert drive(ev.Recovered(7)) == ["Apply", "WakeAt"]
    drive(ev.Applied(7))
    assert "Load" in drive(ev.Tick(), after=4.1)
    assert drive.all[-1] == ev.Load(7)


def test_a_person_may_order_it_only_when_a_commit_exists() -> None:
    drive = Driver()
    with pytest.raises(ev.IllegalEvent):
        drive(ev.ClaimAsked())
    assert "Load" in Driver().to_ready()(ev.ClaimAsked())


def test_an_ordered_failover_keeps_the_link_until_the_verdict() -> None:
    drive = Driver().to_ready()
    assert "DropPeer" not in drive(ev.ClaimAsked())
    assert drive(ev.Staged(2)) == [], "and acknowledges nothing any more"
    assert "DropPeer" not in drive(ev.Loaded())
    assert drive(ev.Claimed(won=True)) == ["DropPeer", "Run"]


def test_a_halted_claim_keeps_the_replica_for_a_person() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    drive(ev.Loaded())
    effects = drive(ev.Claimed(won=False, halted=True, reason="the record is gone"))
    assert "Discard" not in effects and "Run" not in effects


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


def test_a_standby_that_dies_after_its_claim_was_sent_keeps_the_record() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    drive(ev.Loaded())
    assert drive(ev.Failed("the link broke")) == [], "the verdict is what counts"
    assert drive(ev.VmDied("QEMU died")) == ["DropPeer", "Report", "Finish"]
    assert drive.all[-1] == ev.Finish(ev.Outcome.UNSETTLED, "QEMU died")


def test_a_standby_that_won_and_does_not_run_keeps_the_record() -> None:
    drive = Driver().to_ready()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    drive(ev.Loaded())
    drive(ev.Claimed(won=True))
    assert drive(ev.Failed("cont was refused")) == ["DropPeer", "Report", "Finish"]


def claiming() -> Driver:
    drive = Driver().to_ready()
    drive(ev.ClaimAsked())
    assert drive(ev.Loaded()) == ["StartClaim"]
    return drive


def test_a_standby_that_dies_after_its_claim_was_sent_keeps_its_record() -> None:
    drive = claiming()
    effects = drive.machine.handle(ev.VmDied("the standby's QEMU died"), 9.0)
    assert "Discard" not in kinds(effects), "the claim may win, and then nobody else may run"
    assert isinstance(effects[-1], ev.Finish) and effects[-1].outcome is ev.Outcome.UNSETTLED
    drive = claiming()
    drive(ev.Claimed(True))
    assert "Discard" not in kinds(drive.machine.handle(ev.Failed("QEMU does not go on"), 9.0))


def test_a_step_that_fails_while_the_claim_is_out_does_not_end_it() -> None:
    drive = claiming()
    assert drive(ev.Failed("the journal is full")) == []
    assert "Run" in drive(ev.Claimed(True))


def test_before_a_claim_a_broken_standby_is_discarded() -> None:
    drive = Driver().to_ready()
    assert "Discard" in drive(ev.VmDied("the standby's QEMU died"))
