"""What the demo concludes from the client's log."""

from __future__ import annotations

import json

from tests.lab.measure import ClientLog, longest_gap, lost, percentile, picture


def test_parse_keeps_answers_and_resets_and_leaves_out_a_half_line() -> None:
    lines = [
        json.dumps({"kind": "commit", "seq": 1, "sent": 1.0, "answered": 1.5}) + "\n",
        json.dumps({"kind": "echo", "seq": 1, "sent": 1.0, "answered": 1.1}) + "\n",
        json.dumps({"kind": "reset", "of": "echo", "at": 2.0, "reason": "gone"}) + "\n",
        '{"kind": "commit", "seq": 2',
    ]
    log = ClientLog.parse(lines)
    assert log.commits == {1: 1.5}
    assert log.latencies == [0.5]
    assert log.echoes == [1.1]
    assert log.resets == ["echo: gone"]


def test_lost_are_acknowledged_rows_that_are_not_stored() -> None:
    assert lost([1, 2, 3], [1, 3, 4]) == [2]
    assert lost([1, 2], [1, 2, 3]) == []


def test_longest_gap_counts_the_one_that_the_cut_falls_into() -> None:
    times = [0.0, 3.0, 3.1, 3.9, 4.0, 4.1]
    assert longest_gap(times, 3.5, 4.1) == 3.9 - 3.1
    assert longest_gap(times, 5.0, 6.0) is None


def test_picture_is_empty_where_nothing_was_answered() -> None:
    drawn = picture([9.0, 9.01, 11.0], when=10.0, before=1.5, after=1.5, step=0.5).splitlines()
    assert drawn[0] == "  | █   ▄|"
    assert drawn[2].index("^") - 3 == 3


def test_percentile() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 1.0) == 2.0
