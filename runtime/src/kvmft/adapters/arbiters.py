"""Which arbiter the configuration names."""

from __future__ import annotations

from typing import Any

from kvmft.adapters import etcd, filearbiter
from kvmft.ports import Arbiter


def open_arbiter(section: dict[str, Any]) -> Arbiter | None:
    """The arbiter of the `arbiter` section of kvmft.yml; None where there is none."""
    match section.get("type"):
        case "etcd":
            return etcd.Etcd(etcd.config_of(section))
        case "file":
            return filearbiter.FileArbiter(section["directory"])
        case _:
            return None
