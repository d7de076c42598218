"""A command that reaches a worker before it has attached to QEMU is carried out afterwards."""

from __future__ import annotations

from tests.pair.harness import Pair, wait_for


def test_turning_off_at_once_leaves_the_vm_running(pair: Pair) -> None:
    __, port = pair.start_secondary()
    primary = pair.start_primary(port)
    primary.send(cmd="stop")
    done = primary.wait(msg="done")
    assert done["outcome"] == "detached", done
    last = pair.primary_vm.counts[-1]
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > last)
