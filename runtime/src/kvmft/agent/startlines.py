"""The line with which a worker starts: everything that it must know of its VM and of this cluster."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kvmft.agent.host import RUN_DIRECTORY, Found
from kvmft.agent.store import VmState

if TYPE_CHECKING:
    from kvmft.agent.service import Agent


class StartLines:
    """Start lines of the workers of one VM; `kvmft.worker.config` reads them."""

    def __init__(self, agent: Agent, state: VmState) -> None:
        self._agent = agent
        self._state = state

    def _common(self, role: str, peer: str) -> dict[str, Any]:
        state, config = self._state, self._agent.config
        return {
            "cmd": "start", "role": role, "vm": state.vm, "uuid": state.uuid,
            "host": config.host, "peer": peer, "cluster_id": config.cluster_id,
            "session": state.session or "0" * 32,
            "run_dir": os.path.join(RUN_DIRECTORY, state.vm),
            "state_dir": self._agent.store.directory(state.vm),
            "tls": {"ca": config.tls.ca, "cert": config.tls.cert, "key": config.tls.key},
            "arbiter": config.arbiter, "domain": state.vm,
            "options": {**config.options, **state.options},
            "beacons": self._beacons(peer),
        }  # fmt: skip

    def _beacons(self, peer: str) -> dict[str, Any] | None:
        """Between which addresses the two workers show life besides the FT log."""
        config = self._agent.config
        if peer not in config.peers:
            return None  # it was taken out of the inventory; only a claim is left to be made
        return {
            "address": config.addresses["management"],
            "peer_address": config.peers[peer]["management"],
            "ports": list(config.ft_log_ports),
        }

    def primary(
        self, found: Found, disks: list[dict[str, Any]], port: int | None
    ) -> dict[str, Any]:
        """For the VM `found`, whose standby's FT log is at `port`; None when there is none."""
        peer = self._state.peer or sorted(self._agent.config.peers)[0]
        return {
            **self._common("primary", peer),
            "qemu_pid": found.pid,
            "own_monitor": found.domain.own_monitor,
            "machine": found.domain.machine,
            "disks": disks,
            "nics": nics_of(found),
            "arbitration": "create",
            "peer_address": self._agent.config.peers[peer]["ft"],
            "peer_port": port,
        }

    def secondary(self, pid: int, resume: bool) -> dict[str, Any]:
        """For the standby whose QEMU is process `pid`; with `resume` what a worker left in /run counts."""
        state, config = self._state, self._agent.config
        return {
            **self._common("secondary", state.peer),
            "qemu_pid": pid,
            "own_monitor": state.own_monitor,
            "machine": state.machine,
            "disks": state.disks,
            "nics": state.nics,
            "listen_address": config.addresses["ft"],
            "port_range": list(config.ft_log_ports),
            "resume": resume,
        }

    def claim(self) -> dict[str, Any]:
        """For a worker that only asks the arbiter whether the VM may start here."""
        return {**self._common("claim", self._state.peer), "qemu_pid": 0, "machine": "", "disks": []}


def nics_of(found: Found) -> list[dict[str, str]]:
    """Alias and MAC address of each NIC of a VM."""
    return [{"alias": nic.alias, "mac": nic.mac} for nic in found.domain.nics]
