"""The order of the unit tests."""

from __future__ import annotations

import pytest

LONG = ("plugins", "roles")
"""Folders whose tests run playbooks."""


def pytest_configure(config: pytest.Config) -> None:
    """Files keep their order; pytest-xdist would put those with the most tests first, and the longest have few."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first: the stage has two workers that take file after file, and a long last one would be waited for."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
