"""Checkpoints that tell only what is new in a page, on real QEMUs: the standby's memory is the VM's, whoever dies when."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from tests.pair.bootsector import COUNTED_PAGES
from tests.pair.conftest import on_each
from tests.pair.harness import Pair, Worker, start_worker, wait_for

COUNT_AT, PAGES_AT = 0x8000, 0x20000
"""Where the boot-sector guest counts, and the first of the pages that it then touches one after the other."""

OLDER_SECONDARY = """
from kvmft.worker import secondary
_encode = secondary.encode_json
def encode_json(kind, value, epoch=0):
    return _encode(kind, {key: each for key, each in value.items() if key != "deltas"}, epoch)
secondary.encode_json = encode_json
"""
OLDER_PRIMARY = """
from kvmft.worker import primary
_welcomed = primary.PrimaryWorker._welcomed
def welcomed(self, knows):
    _welcomed(self, {key: each for key, each in knows.items() if key != "deltas"})
primary.PrimaryWorker._welcomed = welcomed
"""
WORDS_NOT_SET = """
from kvmft.adapters import deltas
deltas.Deltas.apply = lambda self, areas: None
"""
MALFORMED = """
from kvmft.worker import shadow
_section, _sent = shadow.Shadow._section, []
def section(self, found):
    made = bytearray(_section(self, found))
    _sent.append(len(made))
    if len(_sent) > 60 and made:
        made[16 + 8 * int.from_bytes(made[:8], "little")] ^= 1  # a bit of the first bitmap
    return bytes(made)
shadow.Shadow._section = section
"""
KILLED_WHILE_IT_APPLIES = """
import os
from kvmft.adapters import deltas
_apply = deltas.Deltas.apply
def apply(self, areas):
    if not os.path.exists({order!r}):
        return _apply(self, areas)
    pids = [int(word) for word in open({order!r}).read().split()]
    marked = deltas.positions(self.bitmaps)
    for at, word in list(zip(marked.tolist(), self.words.tolist()))[: len(marked) // 2]:
        areas[self.blocks[at // 512]][self.pages[at // 512] * 512 + at % 512] = word
    for pid in [*pids, os.getpid()]:
        os.kill(pid, 9)
deltas.Deltas.apply = apply
"""


def saved(primary: Worker) -> int:
    primary.messages.clear()
    return int(primary.wait(msg="status")["totals"]["log_saved_bytes"])


def audit(primary: Worker, number: int) -> int:
    """Differing pages."""
    primary.send(cmd="audit", id=number)
    answer = primary.wait(msg="audit", id=number)
    assert answer["pages"] > 0
    return int(answer["different"])


def standby_memory(pair: Pair) -> tuple[int, list[int]]:
    """The count, and what the guest wrote to each of its pages, in the standby's memory."""
    folder = Path(f"/proc/{pair.standby_vm.process.pid}/fd")
    found = next(each for each in folder.iterdir() if "memfd:" in os.readlink(each))
    descriptor = os.open(found, os.O_RDONLY)
    try:
        with mmap.mmap(descriptor, 1 << 20, prot=mmap.PROT_READ) as area:
            def number(at: int) -> int:
                return int.from_bytes(area[at : at + 4], "little")

            return number(COUNT_AT), [number(PAGES_AT + 4096 * page) for page in range(COUNTED_PAGES)]
    finally:
        os.close(descriptor)


@on_each()
def test_after_many_epochs_memory_is_equal_and_the_standby_counts_on(pair: Pair) -> None:
    primary, secondary = pair.protect()
    for number in range(4):
        time.sleep(0.5)
        assert audit(primary, number) == 0
    assert saved(primary) > 50 * 4096
    pair.primary_vm.process.kill()
    secondary.wait(msg="done", outcome="activated")
    last = pair.primary_vm.counts[-1]
    first = wait_for("the guest counting on node-b", lambda: pair.standby_vm.counts)[0]
    assert last - 0x4000 < first <= last + 0x100


def test_the_audit_sees_words_that_were_not_set(pair: Pair) -> None:
    primary, __ = pair.protect(secondary_patch=WORDS_NOT_SET)
    wait_for("words being sent", lambda: saved(primary) > 0)
    assert audit(primary, 1) > 0


def test_a_worker_killed_while_it_applies_applies_all_of_that_commit_once_more(pair: Pair) -> None:
    """Of the guest's pages those before some page hold the count and the others the one before, as at any moment of the VM."""
    order = pair.root / "order"
    primary, secondary = pair.protect(secondary_patch=KILLED_WHILE_IT_APPLIES.format(order=str(order)))
    wait_for("words being sent", lambda: saved(primary) > 0)
    # Both of node-a die first, so that node-b is the only one to go on.
    (pair.root / "written").write_text(f"{primary.process.pid} {pair.primary_vm.process.pid}")
    (pair.root / "written").rename(order)
    secondary.process.wait(timeout=10)
    last = pair.primary_vm.counts[-1]
    secondary.stop()
    order.unlink()
    again = start_worker(pair.config("secondary", listen_address="127.0.0.1", port_range=[10000, 19999], resume=True))
    pair.workers.append(again)
    again.wait(msg="status")
    count, pages = standby_memory(pair)
    new = pages.count(count)
    assert pages == [count] * new + [count - 1] * (COUNTED_PAGES - new), (count, pages)
    again.wait(msg="done", outcome="activated")
    first = wait_for("the guest counting on node-b", lambda: pair.standby_vm.counts)[0]
    assert last - 0x4000 < first <= last + 0x100


def test_a_malformed_checkpoint_ends_protection_and_not_the_vm(pair: Pair) -> None:
    primary, secondary = pair.protect(primary_patch=MALFORMED)
    assert "malformed" in secondary.wait(msg="done", outcome="failed")["reason"]
    applied = [each for each in secondary.messages if each["msg"] == "event" and each["reason"].startswith("Apply")]
    assert applied == [], "it is refused before it is committed and acknowledged, and not when it is applied"
    assert "malformed" in primary.wait(msg="done", outcome="solo")["reason"]
    last = pair.primary_vm.counts[-1]
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > last)
    assert pair.standby_vm.counts == []


@pytest.mark.parametrize("older", [{"secondary_patch": OLDER_SECONDARY}, {"primary_patch": OLDER_PRIMARY}])
def test_with_an_older_version_pages_go_whole(pair: Pair, older: dict[str, str]) -> None:
    primary, __ = pair.protect(**older)
    time.sleep(1.0)
    assert audit(primary, 1) == 0 and saved(primary) == 0
