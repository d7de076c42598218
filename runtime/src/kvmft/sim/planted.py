"""Replaces modules by changed ones in this process: how a bug is planted without touching a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """One planted bug: in `kvmft.core.<module>`, `old` (which occurs exactly once) becomes `new`."""

    name: str
    module: str
    old: str
    new: str


class Drifted(ValueError):
    """The source does not have the mutant's text exactly once: the list must follow the source."""


def changed_source(mutant: Mutant) -> str:
    """The source of the module with the bug in it. Raises Drifted."""
    spec = importlib.util.find_spec(f"kvmft.core.{mutant.module}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise Drifted(
            f"{mutant.name}: {mutant.module}.py has {source.count(mutant.old)} times: {mutant.old!r}"
        )
    return source.replace(mutant.old, mutant.new)


class _Finder:
    """Imports `fullname` from `source`; everything else as ever."""

    def __init__(self, fullname: str, source: str) -> None:
        self.fullname = fullname
        self.source = source

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.fullname:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.source, f"<planted {self.fullname}>", "exec"), module.__dict__)


def schedule_with(mutant: Mutant) -> Any:
    """`kvmft.sim.schedule` over a core that has the bug. The process cannot be used otherwise then."""
    finder = _Finder(f"kvmft.core.{mutant.module}", changed_source(mutant))
    for name in [name for name in sys.modules if name.startswith(("kvmft.core.", "kvmft.sim."))]:
        if name not in (__name__, "kvmft.sim.mutants", "kvmft.sim.__main__"):
            del sys.modules[name]
    sys.meta_path.insert(0, finder)
    return importlib.import_module("kvmft.sim.schedule")
