"""The collection's pure helpers, loaded from their files: here it is no package that Python could import."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]


def plugin_util(name: str) -> ModuleType:
    """plugins/plugin_utils/NAME.py as a module."""
    full = f"kvmft_plugin_utils_{name}"
    spec = importlib.util.spec_from_file_location(
        full, ROOT / "plugins" / "plugin_utils" / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module
