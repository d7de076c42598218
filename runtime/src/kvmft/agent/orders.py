"""What people order of one VM: turn off, suspend, switch over, move the secondary, audit, take over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from kvmft.agent.farewells import Farewell
from kvmft.agent.workers import WorkerProcess
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent
    from kvmft.agent.vm import ManagedVm

LEAVE_TIMEOUT = 30.0
"""Seconds that turning off waits for the worker, which may have to ask the arbiter."""


class Orders:
    """Each method returns when the order was carried out, or raises KvmftError with what stands against
    it. What a worker must do for it is the VM's next step as ever."""

    def __init__(self, agent: Agent, vm: ManagedVm) -> None:
        self._agent = agent
        self._vm = vm

    async def stop_protection(self, desired: str) -> None:
        """Turn off (`disabled`) or suspend; returns when it is done."""
        vm, state = self._vm, self._vm.state
        state.desired = desired
        vm.save()
        async with vm.turn():
            running = await asyncio.to_thread(self._agent.host.is_running, state.vm)
            if vm.worker is None and vm.must_regain and running:
                # Its output is shut and its secondary may have taken over: a worker must win the
                # right to run alone before anything is given up.
                await vm.regain()
        if vm.worker is not None:
            await self._leave(vm.worker, "stop" if desired == "disabled" else "suspend")
        async with vm.turn():
            if state.role != "primary":
                raise KvmftError(
                    "lost", f"VM {state.vm} was taken over by {state.peer} meanwhile.",
                    f"Ask there: kvmft status {state.vm}.",
                )  # fmt: skip
            if vm.must_regain and not state.may_start:
                raise KvmftError(
                    "not_released",
                    f"VM {state.vm} has not won the right to run alone: {vm.shown[1]}",
                    "Bring the arbiter back (`kvmft doctor`); it is then completed by itself.",
                )
            await vm.let_go()

    async def _leave(self, worker: WorkerProcess, command: str) -> None:
        """Have `worker` end the pairing, and wait until it has ended."""
        worker.send(cmd=command)
        await worker.end(LEAVE_TIMEOUT)
        while self._vm.worker is worker:
            await asyncio.sleep(0.05)

    async def switch(self) -> None:
        """Planned switchover to the secondary; returns when it runs the VM. Nothing is lost, also
        when it fails: then KvmftError says why and the VM goes on here."""
        vm, state = self._vm, self._vm.state
        if vm.worker is None or state.role != "primary" or vm.shown[0] != "protected":
            raise KvmftError(
                "not_protected", f"VM {state.vm} is {vm.shown[0]} ({vm.shown[1]}), so no secondary "
                "can take it without loss.", "Wait for `protected`.",
            )  # fmt: skip
        await self._agent.probe_arbiter()
        if not self._agent.arbiter_ok:
            raise KvmftError("no_arbiter", f"The arbiter cannot swap the roles: "
                             f"{self._agent.arbiter_reason}", "Bring the arbiter up.")  # fmt: skip
        await vm.answers.switch(vm.worker)

    async def move_secondary(self, target: str) -> None:
        """Give up the secondary, in order, and make it anew on `target` (which may be the same)."""
        vm, state = self._vm, self._vm.state
        worker, old = vm.worker, Farewell(state.vm, state.peer, state.session)
        if state.role != "primary" or worker is None:
            raise KvmftError("not_protected", f"VM {state.vm} is not protected from here.",
                             "Ask the host where it runs.")  # fmt: skip
        # Before anything is given up: a host that cannot take it must not cost the protection.
        await vm.pairing.check(target)
        self._agent.events.add(state.vm, "moving", f"the secondary goes from {old.peer} to {target}")
        await self._leave(worker, "suspend")
        async with vm.turn():
            if state.role != "primary" or vm.must_regain:
                raise KvmftError("lost", f"VM {state.vm} was not released: {vm.shown[1]}",
                                 "See `kvmft events`.")  # fmt: skip
            state.peer = target
            vm.save()
            vm.at_once()
        if old.peer != target:
            await self._agent.farewells.say(old)

    def kill_standby(self) -> None:
        """Test: end the standby's QEMU as a crash would."""
        if self._vm.worker is None or self._vm.state.role != "secondary":
            raise KvmftError("not_secondary", f"{self._agent.config.host} has no standby of VM "
                             f"{self._vm.state.vm}.", "Ask the host that `kvmft status` names.")  # fmt: skip
        self._agent.host.kill(self._vm.state.vm)

    async def audit(self) -> dict[str, Any]:
        """Compare the replica's memory with the VM's at the next commit."""
        if self._vm.worker is None or self._vm.state.role != "primary":
            raise KvmftError("not_protected", f"VM {self._vm.state.vm} is not protected from here.",
                             "Ask the host where it runs.")  # fmt: skip
        result = await self._vm.answers.audit(self._vm.worker)
        if "error" in result:
            raise KvmftError("audit", f"No audit: {result['error']}.", "Wait for `protected`.")
        return {key: result[key] for key in ("epoch", "pages", "different", "first_different")}

    async def epochs(self, since: Any) -> dict[str, Any]:
        """The epochs after `since` one by one, and what is held at this moment, in bytes."""
        vm = self._vm
        if vm.worker is None or not vm.protects:
            raise KvmftError("not_protected", f"VM {vm.state.vm} is not protected from here.",
                             "Ask the host where it runs.")  # fmt: skip
        found = await vm.epochs.ask(vm.worker, since)
        return {**found, "held_bytes": vm.figures.get("held_bytes")}

    def claim(self) -> None:
        """A person orders this side, a secondary, to take over."""
        if self._vm.worker is None or self._vm.state.role != "secondary":
            raise KvmftError("not_secondary", f"{self._agent.config.host} has no standby of VM "
                             f"{self._vm.state.vm}.", "Ask the host that `kvmft status` names.")  # fmt: skip
        self._vm.worker.send(cmd="claim")
