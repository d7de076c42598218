"""docs/troubleshooting.md has every error that the code can raise, with its remedy."""

from __future__ import annotations

import re

from tests.lab.lab import ROOT
from tests.tools import error_table


def test_the_table_is_what_the_code_raises_now() -> None:
    page = error_table.PAGE.read_text()
    assert page == error_table.fresh(page), "run: python -m tests.tools.error_table --write"


def test_every_code_in_the_sources_is_on_the_page() -> None:
    """Read from the text of the sources, and not the way the table is made."""
    page = error_table.PAGE.read_text()
    codes = set()
    for top in ("runtime/src/kvmft", "plugins"):
        for path in (ROOT / top).rglob("*.py"):
            codes |= set(re.findall(r'(?:KvmftError|ControlError)\(\s*"([a-z_]+)"', path.read_text()))
    assert len(codes) > 80
    assert sorted(code for code in codes | error_table.checks() if f"`{code}`" not in page) == []


WITHOUT_REMEDY = {"not_yours", "standby_worker", "arbiter_key", "unknown_op"}
"""Answers of one agent to another: what a person then reads is an error that has its remedy."""


def test_every_error_says_what_to_do() -> None:
    assert sorted({row.code for row in error_table.rows() if not row.remedy} - WITHOUT_REMEDY) == []
