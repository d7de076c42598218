"""The core stays pure: what it may import is a short list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvmft.core

ALLOWED = {"__future__", "collections", "collections.abc", "dataclasses", "enum", "fnmatch",
           "hashlib", "hmac", "json", "math", "re", "struct", "typing", "xml.etree.ElementTree"}  # fmt: skip
FILES = sorted(Path(kvmft.core.__path__[0]).glob("*.py"))


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_core_imports_nothing_that_acts(path: Path) -> None:
    foreign = {
        name
        for name in imports_of(path)
        if name not in ALLOWED and not name.startswith("kvmft.core") and name != "kvmft.errors"
    }
    assert foreign == set()


def test_adapters_do_not_import_the_agent_or_the_workers() -> None:
    import kvmft.adapters

    for path in Path(kvmft.adapters.__path__[0]).glob("*.py"):
        wrong = {name for name in imports_of(path) if name.startswith(("kvmft.agent", "kvmft.worker"))}
        assert wrong == set(), path.name
