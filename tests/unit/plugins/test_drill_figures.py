"""What a drill shows: silences, markers, states over time, objectives, and what stays out of a report."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from . import drills
from .conftest import ROOT
from .drills import BEGIN, event

record, text = drills.util("_drill_record"), drills.util("_drill_text")
timeline, watch = drills.util("_drill_timeline"), drills.util("_drill_watch")
SCHEMA = json.loads((ROOT / "docs" / "drill-report.schema.json").read_text())


def report(**changes: Any) -> dict[str, Any]:
    """The report of the drill in drills.py, which keeps its schema whatever was changed."""
    made: dict[str, Any] = record.report(drills.raw(**changes))
    jsonschema.validate(json.loads(json.dumps(made)), SCHEMA)
    return made


def watched(*answers: tuple[float, float, bool], floor: float = 0.1, until: float) -> dict[str, Any]:
    seen = watch.Watch(floor)
    for begun, ended, ok in answers:
        seen.feed(begun, ended, ok, "" if ok else "refused")
    made: dict[str, Any] = seen.result(until)
    return made


# -- silences ---------------------------------------------------------------------------------------


def test_a_silence_lasts_from_the_last_answer_to_the_next() -> None:
    seen = watched((0.0, 0.01, True), (0.05, 0.06, True), (0.1, 0.35, False), (0.35, 0.5, True), until=0.5)
    assert seen["silences"] == [[0.06, 0.5]]
    assert (seen["attempts"], seen["answers"], seen["failure"]) == (4, 3, "refused")


def test_the_rhythm_of_asking_is_no_silence() -> None:
    seen = watched(*((at / 20, at / 20 + 0.005, True) for at in range(100)), until=4.96)
    assert seen["silences"] == [] and seen["failure"] == ""
    assert seen["answer_ms"]["p50"] == pytest.approx(5.0, rel=0.1)


def test_who_never_answered_has_no_silence_and_who_stopped_has_an_open_one() -> None:
    assert watched((0.0, 0.25, False), until=9.0)["first"] is None
    assert watched((0.0, 0.25, False), until=9.0)["silences"] == []
    assert watched((0.0, 0.01, True), (1.0, 1.25, False), until=9.0)["silences"] == [[0.01, None]]


def test_a_watch_that_ends_late_after_an_answer_saw_no_silence() -> None:
    assert watched((0.0, 0.01, True), (0.05, 0.06, True), until=0.9)["silences"] == []


def test_of_very_many_silences_the_longest_are_kept_in_order() -> None:
    rng, seen, at = random.Random(1), watch.Watch(0.1), 0.0
    gaps = [rng.uniform(0.2, 3.0) for __ in range(2 * watch.MOST + 300)]
    for gap in gaps:
        at += gap
        seen.feed(at - 0.001, at, True)
    found = [b - a for a, b in seen.result(at)["silences"]]
    assert len(found) == watch.MOST and min(found) >= sorted(gaps[1:])[-watch.MOST] - 1e-3
    starts = [a for a, __ in seen.result(at)["silences"]]
    assert starts == sorted(starts)


def test_percentiles_are_of_the_answers() -> None:
    seen = watch.Watch(10.0)
    for number in range(1000):
        seen.feed(number, number + (0.5 if number >= 980 else 0.002), True)
    found = seen.result(1000)["answer_ms"]
    assert found["p50"] == pytest.approx(2, rel=0.12) and found["p99"] == pytest.approx(500, rel=0.12)


# -- markers ----------------------------------------------------------------------------------------


def test_lost_markers_are_counted_and_their_time_is_told() -> None:
    rows = [(number, float(number)) for number in range(1, 11)]
    there: dict[int, bool | None] = {number: number not in (6, 7, 8) for number, __ in rows}
    found = watch.markers(rows, there)
    assert (found["lost"], found["unknown"], found["read_back"]) == (3, 0, 10)
    assert found["lost_ms"] == 3000.0, "from the newest kept one before, 5, to the newest lost one, 8"


@pytest.mark.parametrize(("there", "lost", "lost_ms"), [
    ({1: True, 2: True}, 0, 0.0), ({1: False, 2: False}, 2, 1000.0), ({1: None, 2: None}, 0, 0.0),
    ({1: False, 2: True}, 1, 0.0), ({}, 0, 0.0),
])  # fmt: skip
def test_markers_at_the_edges(there: dict[int, bool | None], lost: int, lost_ms: float) -> None:
    found = watch.markers([(1, 1.0), (2, 2.0)], there)
    assert (found["lost"], found["lost_ms"]) == (lost, lost_ms)
    assert found["unknown"] == sum(there.get(number) is None for number in (1, 2))


# -- states over time -------------------------------------------------------------------------------


def shown(events: list[dict[str, Any]], end: float = 20.0) -> list[tuple[str, str, float, float]]:
    spans = timeline.segments(events, BEGIN, BEGIN + end, "node-a")
    for before, after in zip(spans, spans[1:], strict=False):
        assert before["to"] == after["from"], "there is a hole"
    assert spans[0]["from"] == BEGIN and spans[-1]["to"] == BEGIN + end
    return [(each["state"], each["host"], round(each["from"] - BEGIN, 3), round(each["to"] - BEGIN, 3))
            for each in spans]  # fmt: skip


def test_a_failover_is_four_states() -> None:
    assert shown(drills.failover(4.0, "node-a", "node-b", 4)) == [
        ("protected", "node-a", 0.0, 4.0), ("failing_over", "node-a", 4.0, 4.11),
        ("running", "node-b", 4.11, 10.0), ("protected", "node-b", 10.0, 20.0),
    ]  # fmt: skip


def test_what_a_standby_says_is_not_the_vms_state() -> None:
    standby = event(3.0, "node-b", "state", state="protected", role="secondary")
    assert shown([standby]) == [("protected", "node-a", 0.0, 20.0)]
    left = [*drills.failover(4.0, "node-a", "node-b", 4)[:6],
            event(4.5, "node-a", "state", state="fenced", role="primary"),
            event(4.6, "node-a", "state", state="need_secondary", role="primary")]  # fmt: skip
    assert shown(left)[-1] == ("running", "node-b", 4.11, 20.0)
    # What has become a standby, or is going to be one, loses no VM that runs elsewhere.
    ended = [event(4.5, "node-a", "vm_died"), event(4.6, "node-a", "primary_lost")]
    assert shown([*left, *ended])[-1] == ("running", "node-b", 4.11, 20.0)
    assert shown([*left, event(4.7, "node-b", "vm_died")])[-1] == ("failing_over", "node-b", 4.7, 20.0)


def test_a_lost_secondary_is_seen_too_and_events_of_other_times_are_not() -> None:
    events = [event(-5.0, "node-a", "state", state="starting"),
              event(2.0, "node-a", "state", state="need_secondary", role="primary"),
              event(3.0, "node-a", "state", state="disabled"),
              event(25.0, "node-a", "state", state="protected", role="primary")]  # fmt: skip
    assert [each[0] for each in shown(events)] == ["protected", "running", "off"]


def test_without_events_the_playbooks_own_marks_are_shown() -> None:
    missing = {"events": [], "hosts": {"node-a": {"ok": False}, "node-b": {"ok": True}}}
    made = report(events={"dir1": missing, "db1": missing})
    assert [(each["state"], each["from_ms"]) for each in made["vms"][0]["segments"]] == [
        ("protected", 0.0), ("failing_over", 4000.0), ("running", 4900.0), ("protected", 10800.0),
    ]  # fmt: skip
    assert made["vms"][0]["events_missing_of"] == ["node-a"]


# -- figures, objectives, outcome -------------------------------------------------------------------


def test_a_drill_in_which_all_went_well() -> None:
    made = report()
    assert made["outcome"] == "passed" and [vm["name"] for vm in made["vms"]] == ["dir1", "db1"]
    assert made["groups"] == [{"name": "directory", "vms": ["dir1"]}, {"name": "database", "vms": ["db1"]}]
    first, second = made["vms"]
    assert first["results"]["rto_ms"]["value_ms"] == 360.0 and first["results"]["rto_ms"]["source"] == "probe"
    assert first["results"]["reprotect_ms"]["value_ms"] == 6000.0
    assert first["results"]["rpo_ms"] == {"value_ms": 0.0, "at_most": False, "source": "runtime",
                                          "detail": record.BY_RUNTIME["unplanned"]}  # fmt: skip
    assert second["results"]["rpo_ms"]["source"] == "probe"
    assert [(each["name"], each["met"]) for each in second["objectives"]] == [("rto_ms", True), ("rpo_ms", True)]
    assert [(each["event"], each["won"]) for each in first["receipts"]] == [
        ("claim", None), ("claim_sent", None), ("verdict", True)
    ]  # fmt: skip
    assert made["started"].endswith("Z") and made["duration_ms"] == 34000.0


def test_only_silences_of_its_own_failover_count_for_a_vm() -> None:
    probes = {"dir1": drills.seen([[0.5, 3.4], [4.0, 4.3]]), "db1": drills.seen([[5.0, 8.0], [18.0, 18.4]])}
    made = report(probes=probes)
    assert [vm["results"]["rto_ms"]["value_ms"] for vm in made["vms"]] == [300.0, 400.0]


def test_a_silence_too_short_to_tell_is_a_bound() -> None:
    made = report(probes={"dir1": drills.seen([]), "db1": drills.seen([[18.0, 18.4]])})
    figure = made["vms"][0]["results"]["rto_ms"]
    assert (figure["value_ms"], figure["at_most"]) == (100.0, True)
    assert text.duration(figure) == "at most 100 ms"


def test_a_vm_that_does_not_answer_again_misses_its_objective() -> None:
    made = report(probes={"dir1": drills.seen([[4.0, None]]), "db1": drills.seen([[18.0, 18.4]])})
    assert made["outcome"] == "failed" and "dir1: rto_ms is not known" in made["reason"]
    assert made["vms"][0]["objectives"][0] == {
        "name": "rto_ms", "meaning": "milliseconds without an answer", "objective_ms": 1000,
        "result_ms": None, "met": False, "source": "probe",
    }  # fmt: skip


@pytest.mark.parametrize(("first", "met"), [(4.9, True), (5.0, True), (5.0011, False)])
def test_an_objective_is_met_up_to_its_very_value(first: float, met: bool) -> None:
    made = report(probes={"dir1": drills.seen([[4.0, first]]), "db1": drills.seen([[18.0, 18.1]])})
    assert made["vms"][0]["objectives"][0]["met"] is met
    assert made["outcome"] == ("passed" if met else "failed")


def test_without_a_prober_figures_are_the_hosts_and_say_so() -> None:
    made = report(probes={}, prober="")
    figure = made["vms"][0]["results"]["rto_ms"]
    assert figure["source"] == "runtime" and figure["value_ms"] == 110.0
    assert "not measured from outside" in figure["detail"]
    planned = [drills.leg("dir1", 4.0, "node-a", "node-b", 5, failover={"outage_ms": 71.5})]
    made = report(probes={}, mode="planned", legs=planned)
    assert made["vms"][0]["results"]["rto_ms"]["value_ms"] == 71.5
    assert made["vms"][0]["results"]["rpo_ms"]["detail"] == record.BY_RUNTIME["planned"]


def test_lost_markers_are_an_rpo_and_unread_ones_are_not_zero() -> None:
    lost = {"acknowledged": 90, "read_back": 90, "lost": 4, "unknown": 0, "lost_ms": 180.0}
    unread = {**lost, "read_back": 88, "lost": 0, "unknown": 2, "lost_ms": 0.0}
    for markers, value in ((lost, 180.0), (unread, None)):
        made = report(probes={"dir1": drills.seen([]), "db1": drills.seen([], markers=markers)})
        assert made["vms"][1]["results"]["rpo_ms"]["value_ms"] == value
        assert made["outcome"] == "failed"


def test_there_and_back_the_worse_way_counts() -> None:
    legs = [drills.leg("dir1", 4.0, "node-a", "node-b", 5),
            drills.leg("dir1", 16.0, "node-b", "node-a", 7, back=True)]  # fmt: skip
    events = drills.failover(4.0, "node-a", "node-b", 4) + drills.failover(16.0, "node-b", "node-a", 6)
    made = report(legs=legs, events={"dir1": {"events": events, "hosts": {}}},
                  probes={"dir1": drills.seen([[4.0, 4.3], [16.0, 16.8]])})  # fmt: skip
    assert [leg["rto"]["value_ms"] for leg in made["vms"][0]["legs"]] == [300.0, 800.0]
    assert made["vms"][0]["results"]["rto_ms"]["value_ms"] == 800.0
    assert [leg["protected_ms"] for leg in made["vms"][0]["legs"]] == [10000.0, 22000.0]


def test_a_drill_that_stopped_says_what_is_not_protected() -> None:
    loose = {**drills.status("need_secondary", secondary=""), "reason": "node-a is away"}
    bad = drills.leg("dir1", 4.0, "node-a", "node-b", 5, outcome="failed", reason="it is not healthy")
    made = report(stopped="VM dir1 is not healthy.", legs=[bad],
                  final={"dir1": loose, "db1": drills.status()})  # fmt: skip
    assert made["outcome"] == "aborted"
    assert made["reason"] == "VM dir1 is not healthy. VM dir1 is need_secondary, not protected: node-a is away."
    assert made["vms"][1]["legs"] == [] and made["vms"][1]["results"]["rto_ms"]["source"] == "none"
    assert report(stopped="No.", legs=[bad])["reason"] == "No. All VMs of the drill are protected."
    assert report(stopped="VM db1 is off.", legs=[])["outcome"] == "refused"
    gone = report(final={"dir1": drills.status(), "db1": {}})
    assert gone["outcome"] == "failed" and "VM db1 is not seen on any host" in gone["reason"]


@pytest.mark.parametrize(("sent", "received", "now", "ahead"), [
    (10.0, 11.0, 10.4, 0.0), (10.0, 11.0, 12.0, 1.5), (10.0, 10.2, 5.1, -5.0), (10.0, 11.0, None, 0.0),
])  # fmt: skip
def test_a_clock_is_corrected_only_by_what_the_way_cannot_explain(
    sent: float, received: float, now: float | None, ahead: float
) -> None:
    assert record.ahead({"sent": sent, "received": received, "now": now}) == pytest.approx(ahead)


def test_times_of_clocks_that_are_off_are_moved() -> None:
    clocks = {"hosts": {"sent": BEGIN, "received": BEGIN + 0.2, "now": BEGIN + 5.1}, "prober": None}
    events = {"dir1": {"events": drills.failover(9.0, "node-a", "node-b", 4), "hosts": {}}}
    made = report(clocks=clocks, events=events)
    assert made["clocks"]["hosts_ahead_ms"] == 5000.0
    assert made["vms"][0]["legs"][0]["running_ms"] == 4110.0


# -- what stays out, and what a terminal shows ---------------------------------------------------------


def test_secrets_of_checks_and_reasons_stay_out_of_the_report() -> None:
    made = drills.util("_drill_plan").plan(vms=[{
        "name": "dir1", "address": "192.0.2.1",
        "health": [
            {"type": "http", "url": "https://bob:hunter2@app/health?key=hunter2",
             "headers": {"Authorization": "Bearer hunter2"}},
            {"type": "agent", "command": ["/usr/bin/mysqladmin", "-phunter2", "ping"]},
            {"type": "tasks", "file": "/srv/check.yml", "vars": {"key": "hunter2"}},
        ],
    }])  # fmt: skip
    assert [each["name"] for each in made[0]["checks"]] == [
        "http https://app/health", "command mysqladmin in the guest", "tasks check.yml"
    ]  # fmt: skip
    reasons = "GET https://bob:hunter2@app failed, password: hunter2, api_token=hunter2, Authorization: Bearer hunter2"
    rows = [drills.check(1.0, "before", name=each["name"], detail=reasons, sent="hunter2")
            for each in made[0]["checks"]]  # fmt: skip
    found = report(steps=made, checks={"dir1": rows}, stopped=reasons, remarks=[reasons],
                   legs=[drills.leg("dir1", 4.0, "node-a", "node-b", 5, reason=reasons)])  # fmt: skip
    whole = json.dumps(found) + drills.util("_drill_page").page(found) + "".join(text.lines(found))
    assert "hunter2" not in whole and "https://app" in whole


def test_a_terminal_shows_each_way_and_each_objective() -> None:
    said = "\n".join(text.lines(report()))
    assert "dir1: ran on node-a, runs on node-b now and is protected by node-a, generation 5" in said
    assert "dir1: RTO 360 ms (probe: longest time between two answers, from outside)" in said
    assert "db1: objective rpo_ms 0: met, 0 ms" in said
    legs = [drills.leg("dir1", 4.0, "node-a", "node-b", 5, outcome="failed", reason="The arbiter is away.")]
    said = "\n".join(text.lines(report(legs=legs, stopped="The arbiter is away.",
                                       probes={"dir1": drills.seen([[4.0, 9.5]])})))  # fmt: skip
    assert "dir1: node-a -> node-b: failed. The arbiter is away." in said
    assert "dir1: objective rto_ms 1000: MISSED, 5.5 s" in said and "db1: objective" not in said


@pytest.mark.parametrize(("value", "shown"), [
    (0, "0 ms"), (3.14, "3.1 ms"), (250, "250 ms"), (999.6, "1000 ms"), (1500, "1.5 s"), (30_000, "30 s"),
    (119_000, "119 s"), (600_000, "10 min"), (-100, "-100 ms"),
])  # fmt: skip
def test_times_are_written_as_people_read_them(value: float, shown: str) -> None:
    assert text.milliseconds(value) == shown
