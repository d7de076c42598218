"""An audit that takes longer than the detection time is no silence."""

from __future__ import annotations

import pytest

from tests.pair.harness import Pair

SLOW_HASHES = """
import time
from kvmft.adapters import memory
_hash_pages = memory.hash_pages
def hash_pages(data):
    time.sleep(0.45)
    return _hash_pages(data)
memory.hash_pages = hash_pages
"""
"""The memory in use is at least four pieces: 1.8 s; the detection time of these pairs is 1 s."""


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_a_long_audit_is_no_silence(pair: Pair, side: str) -> None:
    primary, secondary = pair.protect(**{f"{side}_patch": SLOW_HASHES})
    primary.send(cmd="audit", id=1)
    assert primary.wait(msg="audit", id=1)["different"] == 0
    assert secondary.find(msg="event", event="primary_lost") is None
    assert primary.wait(msg="status")["state"] == "protected"
