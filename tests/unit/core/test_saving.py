"""Whether it pays to look for what is new in pages: where it does not, it is tried only now and then."""

from __future__ import annotations

from kvmft.core.saving import REST, TRIAL, WORTH, Saving


def run(saving: Saving, epochs: int, share: float, size: int = 4096) -> int:
    """How many of `epochs` were tried, each of which would save `share` of its bytes."""
    tried = 0
    for __ in range(epochs):
        if saving.tries():
            tried += 1
            saving.found(size, int(share * size))
    return tried


def test_where_it_pays_every_epoch_is_tried() -> None:
    assert run(Saving(), 1000, WORTH + 0.05) == 1000


def test_where_nothing_is_saved_few_are_tried() -> None:
    assert run(Saving(), 10 * (TRIAL + REST), 0.0) == 10 * TRIAL


def test_a_guest_that_changes_its_ways_is_found_out() -> None:
    saving = Saving()
    run(saving, 500, 0.9)
    assert run(saving, 20, -0.02) < 20
    run(saving, TRIAL + REST, 0.0)
    run(saving, REST, 0.9)
    assert run(saving, 100, 0.9) == 100


def test_the_first_epochs_know_no_page_and_do_not_decide() -> None:
    saving = Saving()
    run(saving, TRIAL // 2, 0.0)
    assert run(saving, 100, 0.9) == 100


def test_small_epochs_weigh_little() -> None:
    saving = Saving()
    for __ in range(50):
        assert run(saving, 1, 0.9, 1 << 22) == 1
        assert run(saving, 1, 0.0, 4096) == 1
    assert Saving().tries() and run(Saving(), 100, 0.0, 0) == 100, "an idle guest's empty epochs say nothing"
