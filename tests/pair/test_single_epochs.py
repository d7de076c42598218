"""A real worker tells its epochs one by one, and a VM's protection is measured from what it tells."""

from __future__ import annotations

import time

from kvmft.report.epochs import Epochs
from tests.pair.conftest import Pair

LOOKS = 6


def test_a_workers_epochs_are_told_once_each(pair: Pair) -> None:
    __, port = pair.start_secondary()
    primary = pair.start_primary(port, options={"interval_ms": 50})
    primary.wait(msg="state", state="protected")
    found = Epochs()
    for number in range(LOOKS):
        answer = primary.tell_epochs(found)
        assert (answer["values"] == {}) == (number == 0)
        time.sleep(0.5)
    assert found.since is not None
    result = found.to_dict()
    print(f"\n{result['epochs']} epochs in {result['seconds']} s, still {result['stood_still_share']}, {result['log_bytes_s']} bytes/s")
    assert result["epochs"] == len(result["pages"]) > LOOKS and result["missed"] == 0
    assert all(each > 0 for each in (*result["pause_ms"], *result["commit_ms"], *result["interval_ms"]))
    told = sum(result["pause_ms"]) / 1000
    assert abs(told - result["stood_still_share"] * result["seconds"]) < 0.001, "every pause is told, and none twice"
    assert result["log_bytes_s"] > 0 and 2 < result["seconds"] < 60
