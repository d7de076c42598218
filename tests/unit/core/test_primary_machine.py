"""The primary's machine: output commit (I2), the right to run (I1), and clean leaving (I6)."""

from __future__ import annotations

import pytest

from kvmft.core import events as ev
from kvmft.core.pacing import Pace
from kvmft.core.primary import Pairing, Phase, PrimaryMachine, Tuning

TUNING = Tuning(Pace(interval=0.020, min_interval=0.004), hold_bound=3.0)


def kinds(effects: list[ev.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


class Driver:
    """Feeds a machine and remembers all effects."""

    def __init__(self) -> None:
        self.machine = PrimaryMachine(TUNING)
        self.now = 100.0
        self.all: list[ev.Effect] = []

    def __call__(self, event: ev.Event, after: float = 0.0) -> list[str]:
        self.now += after
        effects = self.machine.handle(event, self.now)
        self.all += effects
        return kinds(effects)

    def to_first_checkpoint(self) -> Driver:
        self(ev.Started(create=True))
        self(ev.Claimed(won=True))
        self(ev.Welcomed())
        self(ev.BulkDone())
        self(ev.RoundDone(dirty_bytes=0))
        self(ev.HoldInstalled())
        self(ev.Captured(1, 0.003))
        return self

    def to_named(self) -> Driver:
        self.to_first_checkpoint()
        self(ev.Acked(1))
        return self

    def to_protected(self) -> Driver:
        self.to_named()
        self(ev.OfferStored())
        self(ev.Claimed(won=True))
        assert self.machine.protected
        return self


def released(effects: list[ev.Effect]) -> list[int]:
    return [effect.epoch for effect in effects if isinstance(effect, ev.ReleaseOutput)]


def test_the_right_to_run_is_gained_before_anything_is_sent() -> None:
    drive = Driver()
    assert drive(ev.Started(create=True)) == ["Report", "StartClaim"]
    assert drive.all[-1] == ev.StartClaim(ev.Purpose.CREATE)
    assert drive(ev.Claimed(won=True)) == ["Connect"]


def test_the_hold_is_installed_before_the_first_checkpoint() -> None:
    drive = Driver().to_first_checkpoint()
    order = kinds(drive.all)
    assert order.index("InstallHold") < order.index("TakeCheckpoint")


def test_output_leaves_only_after_the_commit_of_its_epoch() -> None:
    drive = Driver().to_protected()
    drive(ev.Tick(), after=0.02)
    assert drive.machine.taken == 2
    before = released(drive.all)
    drive(ev.Captured(2, 0.003))
    drive(ev.OutputPending())
    assert released(drive.all) == before == [1]
    drive(ev.Acked(2))
    assert released(drive.all) == [1, 2]


def test_one_checkpoint_at_a_time() -> None:
    drive = Driver().to_protected()
    drive(ev.Tick(), after=0.02)
    drive(ev.Captured(2, 0.003))
    assert "TakeCheckpoint" not in drive(ev.Tick(), after=1.0)
    assert "TakeCheckpoint" in drive(ev.Acked(2))


def test_waiting_output_shortens_the_epoch() -> None:
    drive = Driver().to_protected()
    drive(ev.Tick(), after=0.02)
    drive(ev.Captured(2, 0.003))
    drive(ev.Acked(2))
    assert drive(ev.Tick(), after=0.003) == ["WakeAt"]
    drive(ev.OutputPending())
    assert "TakeCheckpoint" in drive(ev.Tick(), after=0.0015)


def test_the_next_checkpoint_counts_from_when_the_vm_ran_again_and_not_from_when_its_pages_were_compared() -> None:
    drive = Driver().to_protected()
    drive(ev.Tick(), after=0.02)
    drive(ev.Captured(2, 0.003, resumed=drive.now), after=0.003)
    drive(ev.Acked(2))
    drive(ev.OutputPending())
    assert "TakeCheckpoint" in drive(ev.Tick(), after=0.0015)


def test_before_a_pair_was_named_losing_the_secondary_needs_no_claim() -> None:
    drive = Driver().to_first_checkpoint()
    assert drive(ev.PeerLost(ev.Loss.CLOSED, "gone")) == ["DropPeer", "ReleaseAll"]
    assert drive(ev.Released()) == ["Report", "Finish"]
    assert drive.all[-1] == ev.Finish(ev.Outcome.FAILED, "gone")


@pytest.mark.parametrize("stage", ["to_named", "to_protected"])
def test_once_named_nothing_is_released_before_the_claim_is_won(stage: str) -> None:
    drive = Driver()
    getattr(drive, stage)()
    before = len(drive.all)
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    after = drive.all[before:]
    assert ev.StartClaim(ev.Purpose.SOLO) in after
    assert not {"ReleaseAll", "ReleaseOutput"} & set(kinds(after))
    assert drive(ev.Acked(2)) == []
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll"]


def test_leaving_while_the_pairing_is_asked_waits_for_that_verdict_first() -> None:
    drive = Driver().to_named()
    drive(ev.OfferStored())
    assert drive.machine.pairing is Pairing.ASKED
    before = len(drive.all)
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    assert "StartClaim" not in kinds(drive.all[before:])
    assert drive(ev.Claimed(won=True)) == ["StartClaim"]
    assert drive.all[-1] == ev.StartClaim(ev.Purpose.SOLO)
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll"]


def test_a_lost_claim_fences_the_vm_and_releases_nothing() -> None:
    drive = Driver().to_protected()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    effects = drive(ev.Claimed(won=False, reason="node-b won generation 3"))
    assert effects == ["KillVm", "DropPeer", "Report", "Finish"]
    assert drive.all[-1] == ev.Finish(ev.Outcome.FENCED, "node-b won generation 3")
    assert drive.machine.phase is Phase.DONE


def test_the_vm_is_paused_when_nobody_answers_and_runs_on_after_the_win() -> None:
    drive = Driver().to_protected()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    assert drive(ev.Tick(), after=1.0) == ["WakeAt"]
    assert drive(ev.Tick(), after=2.5) == ["PauseVm", "Report"]
    assert drive(ev.Tick(), after=60) == []
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll", "ResumeVm"]


def test_halt_pauses_and_asks_for_a_person() -> None:
    drive = Driver().to_protected()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    effects = drive(ev.Claimed(won=False, halted=True, reason="the record is gone"))
    assert effects == ["PauseVm", "Report", "Finish"]
    assert "KillVm" not in effects and "ReleaseAll" not in effects


def test_a_refused_creation_leaves_the_vm_alone() -> None:
    drive = Driver()
    drive(ev.Started(create=True))
    assert drive(ev.Claimed(won=False, halted=True, reason="no arbiter")) == ["Finish"]


def test_a_restarted_agent_claims_before_it_opens_the_output() -> None:
    drive = Driver()
    drive(ev.Started(create=False, has_peer=False))
    assert drive.all[-1] == ev.StartClaim(ev.Purpose.SOLO)
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll"]
    drive(ev.Released())
    assert drive.all[-1] == ev.Finish(ev.Outcome.SOLO, "holds the right to run alone")


def test_turning_off_claims_first_and_ends_detached() -> None:
    drive = Driver().to_protected()
    assert drive(ev.StopAsked())[0] == "Farewell"
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll"]
    drive(ev.Released())
    assert drive.all[-1] == ev.Finish(ev.Outcome.DETACHED, "turned off on request")


def test_turning_off_before_anything_was_gained_ends_detached_too() -> None:
    """Else its record would stay with the arbiter, and no other host could turn it on."""
    drive = Driver()
    drive(ev.Started(create=True))
    assert drive(ev.StopAsked()) == ["Farewell", "DropPeer"]
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll"]
    drive(ev.Released())
    assert drive.all[-1] == ev.Finish(ev.Outcome.DETACHED, "turned off on request")


def test_a_dead_qemu_hands_over_and_a_power_off_does_not() -> None:
    drive = Driver().to_protected()
    drive(ev.VmDied("QEMU died on the primary"))
    assert ev.Farewell("QEMU died on the primary", claim=True) in drive.all
    other = Driver().to_protected()
    other(ev.VmDied("the guest powered off", powered_off=True))
    assert ev.Farewell("the guest powered off", claim=False) in other.all


@pytest.mark.parametrize(
    "event", [ev.Welcomed(), ev.HoldInstalled(), ev.Captured(1, 0.1), ev.Released(), ev.Staged(1)]
)
def test_an_illegal_event_changes_nothing(event: ev.Event) -> None:
    drive = Driver()
    drive(ev.Started(create=True))
    before = dict(vars(drive.machine))
    with pytest.raises(ev.IllegalEvent):
        drive(event)
    assert vars(drive.machine) == before


def test_an_ack_of_a_checkpoint_never_taken_is_illegal() -> None:
    drive = Driver().to_protected()
    with pytest.raises(ev.IllegalEvent):
        drive(ev.Acked(9))


def to_handing(drive: Driver) -> Driver:
    """Protected, and stopped after the last checkpoint of a planned switchover."""
    drive.to_protected()
    drive(ev.SwitchAsked())
    drive(ev.Captured(2, 0.003))
    assert drive.machine.phase is Phase.HANDING
    return drive


def test_a_switchover_stops_after_one_last_checkpoint() -> None:
    drive = Driver().to_protected()
    assert drive(ev.SwitchAsked()) == ["Report", "TakeCheckpoint", "WakeAt"]
    assert ev.TakeCheckpoint(2, last=True) in drive.all


def test_a_switchover_waits_for_the_checkpoint_under_way() -> None:
    drive = Driver().to_protected()
    drive(ev.Tick(), after=0.02)
    assert drive(ev.SwitchAsked()) == ["Report"]
    assert drive(ev.Captured(2, 0.003)) == []
    assert "TakeCheckpoint" in drive(ev.Acked(2))
    assert drive.machine.phase is Phase.HANDING


def test_the_secondary_is_told_only_when_it_holds_everything() -> None:
    drive = to_handing(Driver())
    assert not any(isinstance(each, ev.HandOver) for each in drive.all)
    assert drive(ev.Acked(2)) == ["ReleaseOutput", "HandOver"]


def test_a_relieved_primary_keeps_its_memory_and_never_runs_on() -> None:
    drive = to_handing(Driver())
    drive(ev.Acked(2))
    assert drive(ev.Relieved()) == ["KeepMemory", "DropPeer", "Finish"]
    assert drive.all[-1] == ev.Finish(ev.Outcome.HANDED_OVER, "the secondary runs the VM now")
    assert not any(isinstance(each, ev.ResumeVm) for each in drive.all)


@pytest.mark.parametrize(
    "event", [ev.PeerLost(ev.Loss.REFUSED, "did not load"), ev.PeerLost(ev.Loss.SILENCE, "silent"),
              ev.Failed("disk"), ev.StopAsked()],
)  # fmt: skip
def test_a_switchover_that_fails_goes_on_here_after_a_won_claim(event: ev.Event) -> None:
    drive = to_handing(Driver())
    assert "StartClaim" in drive(event)
    assert not any(isinstance(each, ev.ResumeVm) for each in drive.all)
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll", "ResumeVm"]


def test_a_switchover_without_an_answer_claims_after_a_bound() -> None:
    drive = to_handing(Driver())
    drive(ev.Acked(2))
    assert drive(ev.Tick(), after=1.0) == ["WakeAt"]
    assert "StartClaim" in drive(ev.Tick(), after=TUNING.switch_bound)
    assert drive(ev.Claimed(won=False, reason="the secondary runs"))[0] == "KillVm"


def test_a_lost_secondary_while_the_last_checkpoint_is_taken_resumes_after_the_claim() -> None:
    drive = Driver().to_protected()
    drive(ev.SwitchAsked())
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    drive(ev.Captured(2, 0.003))
    assert drive(ev.Claimed(won=True)) == ["ReleaseAll", "ResumeVm"]


def test_only_a_protected_vm_can_be_switched() -> None:
    drive = Driver().to_named()
    with pytest.raises(ev.IllegalEvent):
        drive(ev.SwitchAsked())
    with pytest.raises(ev.IllegalEvent):
        drive(ev.Relieved())


def test_a_guest_that_powers_off_ends_the_pair_by_a_won_claim() -> None:
    drive = Driver().to_protected()
    assert drive(ev.VmDied("the guest powered off", powered_off=True)) == [
        "Farewell", "DropPeer", "Report", "StartClaim", "WakeAt",
    ]  # fmt: skip
    assert ev.Farewell("the guest powered off") in drive.all
    assert drive(ev.Tick(), after=TUNING.hold_bound + 1) == [], "there is nothing to pause"
    assert drive(ev.Claimed(won=True)) == ["Report", "Finish"]
    assert drive.all[-1] == ev.Finish(ev.Outcome.DETACHED, "the guest powered off")


def test_a_guest_that_powered_off_while_its_secondary_took_over_is_fenced() -> None:
    drive = Driver().to_protected()
    drive(ev.VmDied("the guest powered off", powered_off=True))
    assert drive(ev.Claimed(won=False, reason="the secondary runs")) == [
        "DropPeer", "Report", "Finish",
    ]  # fmt: skip
    assert drive.all[-1] == ev.Finish(ev.Outcome.FENCED, "the secondary runs")


def test_a_guest_that_powers_off_before_any_pair_needs_no_claim() -> None:
    drive = Driver().to_first_checkpoint()
    assert drive(ev.VmDied("off", powered_off=True)) == ["Farewell", "DropPeer", "Finish"]


def test_a_guest_that_powers_off_while_its_secondary_is_being_left() -> None:
    drive = Driver().to_protected()
    drive(ev.PeerLost(ev.Loss.SILENCE, "silent"))
    drive(ev.VmDied("off", powered_off=True))
    assert drive(ev.Claimed(won=True)) == ["Report", "Finish"]
    assert drive.all[-1] == ev.Finish(ev.Outcome.DETACHED, "off")
