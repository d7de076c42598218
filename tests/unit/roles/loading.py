"""The collection's pure helpers, imported by the name that they have in an installed collection."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]
PACKAGE = "ansible_collections.kvmft.core.plugins.plugin_utils"


@functools.cache
def plugin_util(name: str) -> ModuleType:
    """plugins/plugin_utils/NAME.py. The checkout has no path of that name: for the time of the import its
    packages are stood in for, and Ansible's own loader finds nothing of it afterwards."""
    before = set(sys.modules)
    parts = PACKAGE.split(".")
    for count in range(1, len(parts) + 1):
        package = ".".join(parts[:count])
        if package not in sys.modules:
            made = ModuleType(package)
            made.__path__ = [str(ROOT / "plugins" / "plugin_utils")] if package == PACKAGE else []
            sys.modules[package] = made
    try:
        return importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        for each in [each for each in sys.modules if each.split(".")[0] == parts[0]]:
            if each not in before:
                del sys.modules[each]
