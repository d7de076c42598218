"""What an agent must know of each VM after a restart or a power loss, in one durable file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from kvmft.adapters.durable import remove_durably, write_durably
from kvmft.errors import KvmftError

ROOT = "/var/lib/kvmft/vm"


@dataclass
class VmState:
    """Desired and actual role of one VM on this host.

    `role`: primary (it runs here), secondary (its standby is here), stale (the disks here are of
    the past; they never start). `may_start`: libvirt may start the VM here (I5); false from the
    moment a secondary could take over. `running`: it ran here when last seen, so that it is to run
    again after a power cut; `boot` is the host's boot of that time. `allowed`: hosts on which the
    secondary may be (none: all). `disks` are rows of target, path, size (bytes).
    """

    vm: str
    uuid: str
    desired: str = "enabled"
    role: str = "primary"
    peer: str = ""
    options: dict[str, float] = field(default_factory=dict)
    may_start: bool = True
    autostart: bool = False
    running: bool = False
    boot: str = ""
    allowed: list[str] = field(default_factory=list)
    session: str = ""
    machine: str = ""
    own_monitor: str | None = None
    disks: list[dict[str, Any]] = field(default_factory=list)
    nics: list[dict[str, Any]] = field(default_factory=list)


class Store:
    """State files under `root`, one folder per VM."""

    def __init__(self, root: str = ROOT) -> None:
        self.root = root
        os.makedirs(root, mode=0o750, exist_ok=True)

    def directory(self, vm: str) -> str:
        """The VM's folder; made when it is not there. Names that are no file names are refused."""
        if not vm or "/" in vm or vm.startswith("."):
            raise KvmftError("vm_name", f"{vm!r} is not a name that kvmft can keep.",
                             "Rename the VM.")  # fmt: skip
        path = os.path.join(self.root, vm)
        os.makedirs(path, mode=0o750, exist_ok=True)
        return path

    def save(self, state: VmState) -> None:
        """Make `state` durable."""
        path = os.path.join(self.directory(state.vm), "state.json")
        write_durably(path, json.dumps(asdict(state), indent=1).encode(), 0o640)

    def remove(self, vm: str) -> None:
        """Forget a VM; its claims, if any, stay."""
        remove_durably(os.path.join(self.directory(vm), "state.json"))

    def load(self, vm: str) -> VmState | None:
        """The VM's state, or None; KvmftError when the file is damaged."""
        path = os.path.join(self.root, vm, "state.json")
        try:
            with open(path, encoding="utf-8") as file:
                return VmState(**json.load(file))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise KvmftError(
                "state_damaged",
                f"{path} is damaged: {error}.",
                "Nothing is started from it; remove it after checking which host runs the VM.",
            ) from error

    def all(self) -> list[VmState]:
        """Every VM that is known here."""
        return self.all_with_errors()[0]

    def all_with_errors(self) -> tuple[list[VmState], list[KvmftError]]:
        """Every VM that is known here, and what is wrong with the files that cannot be read.

        One VM's damaged file must not keep the others from being looked after.
        """
        states: list[VmState] = []
        errors: list[KvmftError] = []
        for name in sorted(os.listdir(self.root)):
            try:
                state = self.load(name)
            except KvmftError as error:
                errors.append(error)
                continue
            if state is not None:
                states.append(state)
        return states, errors
