"""A pair of real QEMUs: the whole way from the first sync to the takeover."""

from __future__ import annotations

import time

from tests.pair.bootsector import count_on_disk
from tests.pair.conftest import on_each
from tests.pair.harness import Pair, wait_for


@on_each()
def test_protect_then_kill_the_primary(pair: Pair) -> None:
    primary, secondary = pair.protect()
    wait_for("six epochs", lambda: primary.wait(msg="status", state="protected")["epochs"] > 5)
    pair.primary_vm.process.kill()
    shown = pair.primary_vm.counts[-1]
    secondary.wait(msg="done", outcome="activated")
    # A count only moves forward, and from the committed state: it may repeat what was shown since
    # the last commit (the serial port is not held), but it may not begin anew.
    first = wait_for("the guest counting on node-b", lambda: pair.standby_vm.counts)[0]
    assert 0 < first <= shown + 0x100
    assert first > shown - 0x4000
    later = wait_for("counting on", lambda: pair.standby_vm.counts[-1] > first)
    assert later
    assert wait_for("disk of node-b in use", lambda: count_on_disk(pair.standby_vm.disk) >= first)


@on_each()
def test_the_standbys_memory_equals_the_primarys_page_by_page(pair: Pair) -> None:
    primary, __ = pair.protect()
    for identity in range(3):
        primary.send(cmd="audit", id=identity)
        result = primary.wait(msg="audit", id=identity)
        assert result["pages"] == 64 * 256
        assert result["different"] == 0, result
        time.sleep(0.2)
