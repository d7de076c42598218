"""The judge of scrapes, on rounds whose answer is known."""

from __future__ import annotations

from tests.lab.scrape import Round, Scrape, backward, double_active, ever_active, samples

RUNS: Scrape = {'kvmft_vm_running_here{vm="db1"}': 1.0}
RUNS_NOT: Scrape = {'kvmft_vm_running_here{vm="db1"}': 0.0}


def round_(first: Scrape | None, second: Scrape | None, again: Scrape | None) -> Round:
    return [("a", first), ("b", second), ("a", again)]


def test_two_at_the_same_moment_are_found_and_a_switch_between_answers_is_not() -> None:
    rounds = [
        round_(RUNS, RUNS_NOT, RUNS),
        round_(RUNS, RUNS, RUNS_NOT),  # b took over after a was asked first
        round_(RUNS_NOT, RUNS, RUNS),
        round_(RUNS, RUNS, None),
        round_(RUNS, RUNS, RUNS),
    ]
    assert double_active(rounds, "db1") == [4]
    assert double_active(rounds, "other") == []
    assert ever_active(rounds, "db1") == {"a", "b"}


def test_a_counter_that_goes_back_is_named_and_gauges_may() -> None:
    def scrape(count: float) -> Scrape:
        return {"kvmft_x_total{}": count, "kvmft_y_bucket{}": 1.0, "kvmft_gauge{}": -count}

    rounds = [round_(scrape(1), None, scrape(2)), round_(scrape(1), None, scrape(3))]
    assert backward(rounds) == ["a: kvmft_x_total{} went from 2 to 1"]
    assert backward(rounds, ["a"]) == []


def test_labels_are_in_one_order() -> None:
    assert samples('# TYPE g gauge\ng{vm="db1",state="x"} 1\n') == {'g{state="x",vm="db1"}': 1.0}
