"""The one contract of all arbiters: real ones, with and without faults before them."""

from __future__ import annotations

import multiprocessing
import random
import threading
from pathlib import Path

import pytest

from kvmft.adapters.reactor import Reactor
from kvmft.core import records
from kvmft.core.records import Mode, Record
from kvmft.ports import Arbiter, Unclear, vm_key
from tests.contract.backends import CLUSTER, FAULTS, Backend, in_turn
from tests.contract.sides import Side, pair, uuid
from tests.pair.harness import wait_for

# -- the swap -----------------------------------------------------------------------------------------


def test_a_swap_replaces_exactly_its_base(backend: Backend) -> None:
    arbiter, __ = backend.arbiter()
    key = vm_key(CLUSTER, uuid())
    missing = arbiter.swap(key, b"0", b"1")
    assert (missing.succeeded, missing.current) == (False, None)
    assert arbiter.swap(key, None, b"1").succeeded
    assert arbiter.swap(key, None, b"2").current == b"1"
    refused = arbiter.swap(key, b"0", b"2")
    assert (refused.succeeded, refused.current) == (False, b"1")
    assert arbiter.swap(key, b"1", b"2").succeeded
    assert arbiter.swap(key, b"1", b"3").current == b"2"


def test_a_record_that_was_taken_away_can_be_created_again_but_not_continued(backend: Backend) -> None:
    arbiter, __ = backend.arbiter()
    key = vm_key(CLUSTER, uuid())
    assert arbiter.swap(key, None, b"1").succeeded
    assert arbiter.swap(key, b"0", None).current == b"1"
    assert arbiter.swap(key, b"1", None).succeeded
    gone = arbiter.swap(key, b"1", b"2")
    assert (gone.succeeded, gone.current) == (False, None)
    assert arbiter.swap(key, None, b"3").succeeded
    assert arbiter.swap(key, b"1", b"4").current == b"3"


def test_positions_only_rise_and_name_the_same_arbiter(backend: Backend) -> None:
    arbiter, __ = backend.arbiter()
    key = vm_key(CLUSTER, uuid())
    value, positions = None, []
    for number in range(20):
        new = str(number).encode()
        positions.append(arbiter.swap(key, value, new).position)
        positions.append(arbiter.swap(key, b"no", b"no").position)
        value = new
    assert None not in positions
    assert positions == sorted(positions) and len({each.arbiter for each in positions if each}) == 1
    assert positions[-1] > positions[0]


def _claim_once(arbiter: Arbiter, key: str, base: bytes, mine: bytes, barrier, results) -> None:  # type: ignore[no-untyped-def]
    barrier.wait()
    results.put((mine, arbiter.swap(key, base, mine).succeeded))


def test_of_many_processes_exactly_one_wins_each_time(backend: Backend) -> None:
    """Real processes, each with its own descriptors, at the same moment, many times over."""
    arbiter, __ = backend.arbiter()
    key = vm_key(CLUSTER, uuid())
    assert arbiter.swap(key, None, b"0").succeeded
    context = multiprocessing.get_context("fork")
    base = b"0"
    for number in range(12):
        barrier, results = context.Barrier(8), context.Queue()
        processes = [
            context.Process(target=_claim_once, args=(arbiter, key, base, f"{number}-{each}".encode(),
                                                      barrier, results))
            for each in range(8)
        ]  # fmt: skip
        for process in processes:
            process.start()
        outcomes = [results.get(timeout=60) for __ in processes]
        for process in processes:
            process.join(60)
        winners = [mine for mine, won in outcomes if won]
        assert len(winners) == 1, outcomes
        base = winners[0]
        assert arbiter.swap(key, b"no", b"no").current == base


def test_a_counter_swapped_by_many_takes_each_step_once(backend: Backend) -> None:
    """Four count to 100 together; who is told that it took a step is the only one that took it."""
    key = vm_key(CLUSTER, uuid())
    first, __ = backend.arbiter()
    assert first.swap(key, None, b"0 start").succeeded
    taken: list[int] = []
    unclear: list[str] = []

    def count(arbiter: Arbiter, name: str) -> None:
        value = b"0 start"
        while (number := int(value.split()[0])) < 100:
            new = f"{number + 1} {name}".encode()
            try:
                reply = arbiter.swap(key, value, new)
            except Unclear as error:
                unclear.append(str(error))
                continue
            if reply.succeeded:
                taken.append(number + 1)
            value = new if reply.succeeded else reply.current or b""

    ways = [backend.arbiter()[0] for __ in range(4)]
    threads = [threading.Thread(target=count, args=(way, f"t{at}")) for at, way in enumerate(ways)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert len(set(taken)) == len(taken), "one step was taken twice"
    assert 90 <= len(taken) and len(unclear) < 10, unclear


# -- the verdicts -------------------------------------------------------------------------------------


def test_won_the_arbiter_swapped(backend: Backend, tmp_path: Path) -> None:
    a, __ = pair(backend, tmp_path)
    a.client.solo()
    assert str(a.wait()) == "WON"
    assert (a.held.mode, a.held.gen) == (Mode.SOLO, 3)
    assert backend.value(a.uuid) == a.held.to_bytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_won_through_each_fault(backend: Backend, tmp_path: Path, fault: str) -> None:
    a, b = pair(backend, tmp_path)
    b = b.restarted(backend.arbiter(in_turn(fault, fault, fault))[0])
    b.client.solo()
    assert str(b.wait()) == "WON"
    assert backend.value(b.uuid) == b.held.to_bytes()
    a.client.solo()
    assert str(a.wait()) == "LOST"


def test_won_by_a_record_written_before_a_restart(backend: Backend, tmp_path: Path) -> None:
    """The request was carried out, the answer lost, and the worker killed; then it asks anew."""
    a, __ = pair(backend, tmp_path)
    before = backend.value(a.uuid)
    a.client.solo()
    a.reactor.run_until(lambda: bool(a.client.holdings.written), 5)
    a.reactor.step(0)  # it asks; from here on nothing of what it is told is heard
    wait_for("the swap", lambda: backend.value(a.uuid) != before)
    again = Side(Reactor(), backend.arbiter()[0], a.directory, "node-a", a.uuid)
    again.client.solo()
    verdict = again.wait()
    assert str(verdict) == "WON" and "wrote before" in verdict.reason


def test_claims_again_from_another_base_that_it_holds(backend: Backend, tmp_path: Path) -> None:
    """A pair was named but never asked for: the record before it still stands. The secondary that
    holds the named record learns that it lost."""
    reactor, vm = Reactor(), uuid()
    a = Side(reactor, backend.arbiter()[0], tmp_path, "node-a", vm)
    b = Side(reactor, backend.arbiter()[0], tmp_path, "node-b", vm)
    a.client.create()
    assert str(a.wait()) == "WON"
    b.client.accept_offer(a.client.name_pair(1))
    a.client.solo()
    assert str(a.wait()) == "WON"
    assert "claims from generation 1" in a.notes
    b.client.solo()
    assert str(b.wait()) == "LOST"


def test_lost_for_good_when_the_other_side_won(backend: Backend, tmp_path: Path) -> None:
    a, b = pair(backend, tmp_path)
    b.client.solo()
    assert str(b.wait()) == "WON"
    for __ in range(2):
        a.client.solo()
        verdict = a.wait()
        assert str(verdict) == "LOST" and "node-b holds generation 3" in verdict.reason
        a = a.restarted(backend.arbiter()[0])


def test_undecided_while_the_pairing_is_still_on_its_way(backend: Backend, tmp_path: Path) -> None:
    """B holds the pair's record, the swap that makes it the arbiter's is held back; B keeps asking
    and wins when it came through."""
    reactor, vm = Reactor(), uuid()
    a = Side(reactor, backend.arbiter()[0], tmp_path, "node-a", vm)
    b = Side(reactor, backend.arbiter()[0], tmp_path, "node-b", vm)
    a.client.create()
    assert str(a.wait()) == "WON"
    b.client.accept_offer(a.client.name_pair(1))
    arbiter, release = backend.arbiter(in_turn("hold"))
    a = a.restarted(arbiter)
    named = max(a.client.holdings.bases, key=lambda record: record.gen)
    first = min(a.client.holdings.bases, key=lambda record: record.gen)
    with pytest.raises(Unclear):
        arbiter.swap(vm_key(CLUSTER, vm), first.to_bytes(), named.to_bytes())
    b.client.solo()
    assert b.undecided_for(1.0)
    assert "undecided: the arbiter is at generation 1" in b.notes
    release()
    assert str(b.wait()) == "WON"


@pytest.mark.parametrize("value", [b"", b"garbage", b'{"v":1}'], ids=["empty", "garbage", "other"])
def test_halt_when_the_record_is_damaged(backend: Backend, tmp_path: Path, value: bytes) -> None:
    a, __ = pair(backend, tmp_path)
    backend.put(a.uuid, value)
    a.client.solo()
    verdict = a.wait()
    assert str(verdict) == "HALT" and "not one of kvmft's" in verdict.reason


def test_halt_when_the_record_is_of_another_cluster(backend: Backend, tmp_path: Path) -> None:
    a, __ = pair(backend, tmp_path)
    backend.put(a.uuid, Record("d" * 32, 9, Mode.SOLO, "x", "y", "1" * 32, 0).to_bytes())
    a.client.solo()
    verdict = a.wait()
    assert str(verdict) == "HALT" and "belongs to cluster dddd" in verdict.reason


def test_halt_when_the_record_is_gone(backend: Backend, tmp_path: Path) -> None:
    a, __ = pair(backend, tmp_path)
    arbiter, __ = backend.arbiter()
    assert arbiter.swap(vm_key(CLUSTER, a.uuid), a.held.to_bytes(), None).succeeded
    a.client.solo()
    verdict = a.wait()
    assert str(verdict) == "HALT" and "no record of this VM any more" in verdict.reason


def test_halt_when_turning_on_finds_a_record(backend: Backend, tmp_path: Path) -> None:
    a, __ = pair(backend, tmp_path)
    stranger = Side(a.reactor, backend.arbiter()[0], tmp_path / "other", "node-b", a.uuid)
    stranger.client.create()
    verdict = stranger.wait()
    assert str(verdict) == "HALT" and "exists already: PAIRED by node-a" in verdict.reason


def test_unknown_asks_the_same_again_for_as_long_as_it_takes(backend: Backend, tmp_path: Path) -> None:
    a, __ = pair(backend, tmp_path)
    a = a.restarted(backend.arbiter(in_turn(*["lose request"] * 5))[0])
    a.client.solo()
    asked = a.client.holdings.written
    assert str(a.wait()) == "WON"
    assert len(asked) == 1 and a.held == asked[0], "the transaction changed on the way"


# -- ambiguity ----------------------------------------------------------------------------------------


def test_a_request_held_back_until_the_other_side_won_wins_nothing(backend: Backend, tmp_path: Path) -> None:
    a, b = pair(backend, tmp_path)
    arbiter, release = backend.arbiter(in_turn("hold", *["lose request"] * 50))
    a = a.restarted(arbiter)
    a.client.solo()
    a.noted("no clear answer")
    b.client.solo()
    assert str(b.wait()) == "WON"
    release()
    assert backend.value(b.uuid) == b.held.to_bytes(), "a request of the past replaced the winner's"
    again = a.restarted(backend.arbiter()[0])
    again.client.solo()
    assert str(again.wait()) == "LOST"


def test_a_request_held_back_and_carried_out_later_is_won_by_its_sender(backend: Backend, tmp_path: Path) -> None:
    a, b = pair(backend, tmp_path)
    arbiter, release = backend.arbiter(in_turn("hold", *["lose request"] * 5))
    a = a.restarted(arbiter)
    a.client.solo()
    a.noted("no clear answer")
    release()
    assert str(a.wait()) == "WON"
    b.client.solo()
    assert str(b.wait()) == "LOST"


def test_a_creation_held_back_does_not_bring_back_what_was_turned_off(backend: Backend, tmp_path: Path) -> None:
    arbiter, release = backend.arbiter(in_turn("hold"))
    key = vm_key(CLUSTER, uuid())
    with pytest.raises(Unclear):
        arbiter.swap(key, None, b"1")
    direct, __ = backend.arbiter()
    assert direct.swap(key, None, b"1").succeeded
    assert direct.swap(key, b"1", None).succeeded
    release()
    assert direct.swap(key, b"no", b"no").current is None


@pytest.mark.parametrize("seed", range(12))
def test_through_random_faults_exactly_one_side_wins(backend: Backend, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    a, b = pair(backend, tmp_path)

    def plan() -> str:
        return chance.choice([*FAULTS, "pass"]) if chance.random() < 0.7 else "pass"

    sides = [each.restarted(backend.arbiter(plan)[0]) for each in (a, b)]
    for side in sides:
        side.client.solo()
    done = a.reactor.run_until(lambda: all(side.verdicts for side in sides), 60)
    assert done, [side.notes for side in sides]
    assert sorted(str(side.verdicts[0]) for side in sides) == ["LOST", "WON"]
    winner = next(side for side in sides if side.verdicts[0].won)
    assert backend.value(a.uuid) == winner.held.to_bytes()


def test_many_changes_of_generation_one_after_the_other(backend: Backend, tmp_path: Path) -> None:
    """Taking over back and forth, more often than old generations are kept."""
    a, b = pair(backend, tmp_path)
    runs, waits = a, b
    for __ in range(8):
        waits.client.solo()
        assert str(waits.wait()) == "WON"
        runs.client.solo()
        assert str(runs.wait()) == "LOST"
        runs.client.forget()
        runs, waits = waits, runs
        waits.client.accept_offer(runs.client.name_pair(1))
        runs.client.pair()
        assert str(runs.wait()) == "WON"
    assert runs.held.gen == 18
    assert records.from_bytes(backend.value(a.uuid) or b"", CLUSTER) == runs.held


def test_turning_off_takes_the_record_away_and_on_again_creates_one(backend: Backend, tmp_path: Path) -> None:
    a, __ = pair(backend, tmp_path)
    a.client.solo()
    assert str(a.wait()) == "WON"
    a.client.remove(10)
    assert backend.value(a.uuid) is None and a.client.holdings.bases == ()
    other = Side(a.reactor, backend.arbiter()[0], tmp_path / "b", "node-b", a.uuid)
    other.client.create()
    assert str(other.wait()) == "WON"
    assert other.held.gen == 1


def test_turning_off_never_takes_away_a_record_of_the_other_side(backend: Backend, tmp_path: Path) -> None:
    a, b = pair(backend, tmp_path)
    b.client.solo()
    assert str(b.wait()) == "WON"
    a.client.remove(10)
    assert backend.value(a.uuid) == b.held.to_bytes()
    assert a.client.holdings.bases != ()


# -- the arbiter's own history --------------------------------------------------------------------------


def test_halt_when_the_arbiter_was_wiped(own: Backend, tmp_path: Path) -> None:
    a, b = pair(own, tmp_path)
    own.wipe()
    for side in (a, b):
        side.client.solo()
        verdict = side.wait()
        assert str(verdict) == "HALT", verdict
        assert "wiped" in verdict.reason or "set up anew" in verdict.reason
    assert a.held.gen == 2, "what a person may need stays"


def test_halt_when_the_arbiter_was_restored_from_before_the_pairing(own: Backend, tmp_path: Path) -> None:
    reactor, vm = Reactor(), uuid()
    a = Side(reactor, own.arbiter()[0], tmp_path, "node-a", vm)
    a.client.create()
    assert str(a.wait()) == "WON"
    own.save()
    b = Side(reactor, own.arbiter()[0], tmp_path, "node-b", vm)
    b.client.accept_offer(a.client.name_pair(1))
    a.client.pair()
    assert str(a.wait()) == "WON"
    own.restore()
    a.client.solo()
    verdict = a.wait()
    assert str(verdict) == "HALT" and "went back" in verdict.reason
    # B saw no more than the offer said; the record that it may claim from is not there.
    b.client.solo()
    assert b.undecided_for(1.0)
    assert "undecided: the arbiter is at generation 1" in b.notes


def test_the_winner_halts_when_its_win_was_rolled_back(own: Backend, tmp_path: Path) -> None:
    a, b = pair(own, tmp_path)
    own.save()
    b.client.solo()
    assert str(b.wait()) == "WON"
    own.restore()
    b.client.solo()
    verdict = b.wait()
    assert str(verdict) == "HALT" and "restored from a backup" in verdict.reason


def test_a_side_that_fell_behind_halts_by_what_its_host_saw(own: Backend, tmp_path: Path) -> None:
    """A was away while B won, its agent saw the arbiter since; then the arbiter is rolled back to
    the record that A holds: a swap would succeed, and both would run."""
    from kvmft.adapters.seen import Seen, save_seen

    a, b = pair(own, tmp_path)
    own.save()
    b.client.solo()
    assert str(b.wait()) == "WON"
    health_of = own.arbiter()[0].swap(vm_key(CLUSTER, a.uuid), b"no", b"no").position
    assert health_of is not None
    scope = "" if own.name == "etcd" else a.uuid
    save_seen(str(a.directory / "seen.json"), Seen(health_of.arbiter, {scope: health_of.revision}))
    own.restore()
    a = a.restarted(own.arbiter()[0])
    a.client.solo()
    verdict = a.wait()
    assert str(verdict) == "HALT" and "went back" in verdict.reason
