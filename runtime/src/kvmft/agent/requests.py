"""What this host's people and modules ask of the agent over its control socket."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvmft import __version__
from kvmft.agent import doctor
from kvmft.agent.config import check_options
from kvmft.agent.placement import ask_all, choose, permitted
from kvmft.agent.store import VmState
from kvmft.agent.vm import ManagedVm
from kvmft.agent.vm_status import status_of
from kvmft.core.compliance import compliance
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent


class Requests:
    """Answers them."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def answer(self, op: str, args: dict[str, Any]) -> Any:
        """The answer to request `op`; KvmftError when it is refused or unknown."""
        match op:
            case "ping":
                return {"host": self._agent.config.host, "version": __version__}
            case "host_info":
                return await self.host_info()
            case "host_maintenance":
                return self._maintain(args)
            case "vm_list":
                return [await self.status(each.state.vm) for each in self._agent.all_managed()]
            case "vm_status":
                return await self.status(name_of(args))
            case "vm_check":
                return {"findings": [each.to_dict() for each in await self._findings(name_of(args))]}
            case "vm_enable":
                return await self._enable(name_of(args), args)
            case "vm_disable":
                return await self.stop(name_of(args), "disabled", bool(args.get("check")))
            case "vm_suspend":
                return await self.stop(name_of(args), "suspended", bool(args.get("check")))
            case "vm_resume":
                return await self._enable(name_of(args), args)
            case "vm_move_secondary":
                return await self._move_secondary(name_of(args), args)
            case "vm_restart_secondary":
                return await self._restart_secondary(name_of(args), args)
            case "vm_failover":
                return await self._failover(name_of(args), args)
            case "vm_audit":
                return await self._agent.known(name_of(args)).orders.audit()
            case "vm_epochs":
                return await self._agent.known(name_of(args)).orders.epochs(args.get("since"))
            case "vm_forecast":
                return await self._agent.forecasts.answer(name_of(args), args)
            case "log_speed":
                return await self._agent.log_speed.measure(args)
            case "events" | "events_cluster" | "events_verify":
                return await self._agent.history.answer(op, args)
            case "doctor":
                return await doctor.run(self._agent)
        raise KvmftError("unknown_op", f"The agent does not know the request {op!r}.",
                         "Use a kvmft CLI and collection of the agent's version.")  # fmt: skip

    async def status(self, vm: str) -> dict[str, Any]:
        """What is known of `vm` here, protected or not; KvmftError when there is no such VM."""
        known = self._agent.managed(vm)
        if known is not None:
            try:
                running = await asyncio.to_thread(self._agent.host.is_running, vm)
            except KvmftError:
                running = False  # what kvmft itself knows is shown also without libvirt
            return status_of(self._agent, known, running and known.state.role == "primary")
        found = await asyncio.to_thread(self._agent.host.find, vm)
        return {
            "vm": vm, "uuid": found.domain.uuid, "state": "disabled", "reason": "not turned on",
            "desired": "disabled", "role": "none", "primary": self._agent.config.host, "secondary": None,
            "accelerator": found.domain.accelerator, "running": found.running,
            "switched_off": not found.running, "options": {}, "allowed_hosts": [],
            "arbiter": {"type": self._agent.config.arbiter["type"], "ok": self._agent.arbiter_ok},
        }  # fmt: skip

    async def _findings(
        self, vm: str, preferred: str = "", allowed: Sequence[str] = ()
    ) -> list[KvmftError]:
        """Every reason against protecting `vm`, found without changing anything."""
        found = await asyncio.to_thread(self._agent.host.find, vm)
        reasons = compliance(found.live, found.snapshots)
        if found.running:
            reasons += await asyncio.to_thread(self._agent.host.blockers, vm)
        reasons += await asyncio.to_thread(doctor.kernel_findings)
        await self._agent.probe_arbiter()
        if not self._agent.arbiter_ok:
            reasons.append(KvmftError(
                "no_arbiter", f"Nobody could decide who runs: {self._agent.arbiter_reason}",
                "Bring the arbiter up; without one there is no failover."))  # fmt: skip
        try:
            disks = await asyncio.to_thread(self._agent.host.disk_sizes, vm, found.domain)
            hosts = permitted(self._agent.config.peers, allowed)
            request = await asyncio.to_thread(self._agent.host.request, found.domain)
            version = await asyncio.to_thread(self._agent.host.qemu_of, found)
            offers = await ask_all(self._agent.peers, hosts, vm=vm, xml=found.xml, disks=disks,
                                   qemu_version=version, facts=request.to_dict())  # fmt: skip
            choose(offers, preferred, vm)
        except KvmftError as error:
            reasons += error.reasons or [error]
        return reasons

    async def _enable(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        options = check_options(args.get("options") or {}, "options", self._agent.config.options)
        wanted = str(args.get("secondary") or "")
        allowed = other_hosts(args.get("allowed_hosts"), self._agent.config.host)
        permitted(self._agent.config.peers, [wanted, *(allowed or [])] if wanted else allowed or [])
        known = self._agent.managed(vm)
        if known is not None and known.state.role == "secondary":
            raise KvmftError("runs_elsewhere", f"VM {vm} runs on {known.state.peer}; its secondary "
                             "is here.", f"Ask {known.state.peer}.")  # fmt: skip
        changed = (
            known is None
            or known.state.desired != "enabled"
            or known.state.role == "stale"
            or (bool(options) and options != known.state.options)
            or (allowed is not None and allowed != known.state.allowed)
            or bool(wanted and wanted != known.state.peer)
        )
        if not changed:
            return {"changed": False, "status": await self.status(vm)}
        if known is not None and known.state.role == "stale":
            raise KvmftError(
                "stale", f"What {self._agent.config.host} has of VM {vm} is of the past.",
                f"Turn it on where it runs, probably {known.state.peer}.",
            )  # fmt: skip
        permits = allowed if allowed is not None else known.state.allowed if known else []
        reasons = await self._findings(vm, wanted, [wanted] if wanted else permits)
        if reasons:
            raise KvmftError("not_compliant", f"VM {vm} cannot be protected now: "
                             + " ".join(str(each) for each in reasons),
                             "Mend every reason; the VM was not touched.", reasons)  # fmt: skip
        if args.get("check"):
            return {"changed": True, "status": await self.status(vm)}
        if known is None:
            found = await asyncio.to_thread(self._agent.host.find, vm)
            state = VmState(vm, found.domain.uuid, peer=wanted, options=options)
            state.autostart = await asyncio.to_thread(self._agent.host.set_autostart, vm, False)
            known = self._agent.adopt(state)
            known.shown = ("starting", "turned on")
        known.state.desired = "enabled"
        if options:
            known.state.options = options
        if allowed is not None:
            known.state.allowed = allowed
        self._agent.store.save(known.state)
        self._agent.events.add(vm, "enabled", "turned on")
        if wanted and wanted != known.state.peer and known.protects:
            await known.orders.move_secondary(wanted)
        elif wanted:
            known.state.peer = wanted
            self._agent.store.save(known.state)
        asyncio.create_task(known.reconcile())
        return {"changed": True, "status": await self.status(vm)}

    async def stop(self, vm: str, desired: str, check: bool) -> dict[str, Any]:
        """Turn off (`disabled`) or suspend; with `check` only what that would change."""
        known = self._agent.managed(vm)
        if known is None and desired == "suspended":
            raise KvmftError("not_enabled", f"Fault tolerance of VM {vm} is not on.",
                             f"Turn it on first: kvmft enable {vm}.")  # fmt: skip
        if known is None:
            return {"changed": False, "status": await self.status(vm)}
        if known.state.role == "secondary":
            raise KvmftError("runs_elsewhere", f"VM {vm} runs on {known.state.peer}.",
                             f"Ask {known.state.peer}.")  # fmt: skip
        if known.state.role == "stale":
            return await self._forget_stale(known, desired, check)
        changed = known.state.desired != desired
        if changed and not check:
            self._agent.events.add(vm, desired, "asked by a person")
            await known.orders.stop_protection(desired)
        return {"changed": changed, "status": await self.status(vm)}

    async def _forget_stale(self, known: ManagedVm, desired: str, check: bool) -> dict[str, Any]:
        """Of a VM that libvirt does not have any more nothing could start from what is of the past."""
        vm = known.state.vm
        if desired == "suspended" or await asyncio.to_thread(self._agent.host.is_defined, vm):
            raise KvmftError(
                "stale", f"What {self._agent.config.host} has of VM {vm} is of the past; kvmft keeps it "
                "from starting.",
                f"Turn it off where it runs, probably {known.state.peer}. To forget it here, remove "
                f"its definition first: virsh undefine {vm}.",
            )  # fmt: skip
        shown = {**await self.status(vm), "state": "disabled", "desired": "disabled", "role": "none",
                 "reason": "the VM is not defined here any more"}  # fmt: skip
        if not check:
            self._agent.forget(known)
        return {"changed": True, "status": shown}

    async def _failover(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        known, mode = self._agent.known(vm), str(args.get("mode") or "unplanned")
        target = str(args.get("target") or "")
        if mode not in ("unplanned", "planned", "test"):
            raise KvmftError("failover_mode", f"Failover mode {mode!r} is unknown.",
                             "Use unplanned, planned or test.")  # fmt: skip
        if mode == "test":
            raise KvmftError("not_offered", "This version does not offer test failovers yet.",
                             "Use mode planned or unplanned.")  # fmt: skip
        state = known.state
        where = self._agent.config.host if state.role == "primary" else state.peer
        if target == where:
            return {"changed": False, "status": await self.status(vm)}
        other = state.peer if state.role == "primary" else self._agent.config.host
        if target and target != other:
            raise KvmftError(
                "not_the_secondary", f"The secondary of VM {vm} is on {other or 'no host'}, not on "
                f"{target}.", f"Move it there first: kvmft secondary move {vm} {target}.",
            )  # fmt: skip
        if not args.get("check"):
            await (self._switch if mode == "planned" else self._take_over)(known)
        return {"changed": True, "status": await self.status(vm)}

    async def _switch(self, known: ManagedVm) -> None:
        if known.state.role == "primary":
            await known.orders.switch()
        else:
            await self._agent.peers.call(known.state.peer, "peer_switch", vm=known.state.vm)

    async def _take_over(self, known: ManagedVm) -> None:
        if known.state.role == "secondary":
            known.orders.claim()
        else:
            await self._agent.peers.call(known.state.peer, "peer_claim", vm=known.state.vm)

    async def _move_secondary(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        known, target = self._agent.primary_of(vm), str(args.get("target") or "")
        permitted(self._agent.config.peers, [target])
        changed = known.state.peer != target
        if changed and not args.get("check"):
            await known.orders.move_secondary(target)
        return {"changed": changed, "status": await self.status(vm)}

    async def _restart_secondary(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        """A test: the standby's QEMU is killed, and protection has to come back by itself."""
        known = self._agent.primary_of(vm)
        if known.shown[0] != "protected":
            raise KvmftError("not_protected", f"VM {vm} is {known.shown[0]} ({known.shown[1]}).",
                             "Wait for `protected`.")  # fmt: skip
        if not args.get("check"):
            await self._agent.peers.call(known.state.peer, "standby_kill", vm=vm)
        return {"changed": True, "status": await self.status(vm)}

    async def host_info(self) -> dict[str, Any]:
        """This host, its peers, its arbiter and its VMs."""
        versions = await asyncio.to_thread(self._agent.host.versions)
        peers: dict[str, Any] = {}
        for peer in sorted(self._agent.config.peers):
            try:
                answer = await self._agent.peers.call(peer, "peer_ping")
                peers[peer] = {"reachable": True, "version": answer["version"],
                               "maintenance": bool(answer.get("maintenance"))}  # fmt: skip
            except KvmftError as error:
                peers[peer] = {"reachable": False, "version": None, "reason": str(error)}
        return {
            "host": self._agent.config.host, "version": __version__, **versions,
            "kernel": platform.release(), "python": platform.python_version(),
            "accelerator": await asyncio.to_thread(doctor.accelerator), "peers": peers,
            "arbiter": {"type": self._agent.config.arbiter["type"], "ok": self._agent.arbiter_ok,
                        "reason": self._agent.arbiter_reason},
            "maintenance": self._agent.maintenance.to_dict(),
            "vms": [await self.status(each.state.vm) for each in self._agent.all_managed()],
        }  # fmt: skip

    def _maintain(self, args: dict[str, Any]) -> dict[str, Any]:
        """Begin or end this host's maintenance; what is on it stays as it is."""
        on, reason = args.get("on"), args.get("reason")
        if not isinstance(on, bool) or not isinstance(reason, (str, type(None))):
            raise KvmftError("bad_request", "The request does not say whether maintenance is on.",
                             'Give "on" as true or false, and "reason" as text.')  # fmt: skip
        changed = self._agent.maintenance.change(on, reason, bool(args.get("check")))
        if changed and not args.get("check"):
            text = "takes no new secondary" if on else "takes secondaries again"
            why = f": {self._agent.maintenance.reason}" if self._agent.maintenance.reason else ""
            self._agent.events.add(None, "maintenance", f"{self._agent.config.host} {text}{why}", on=on)
        return {"changed": changed, "maintenance": self._agent.maintenance.to_dict()}


def name_of(args: dict[str, Any]) -> str:
    """The VM that a request names."""
    name = args.get("vm")
    if not isinstance(name, str) or not name:
        raise KvmftError("bad_request", "The request names no VM.", 'Give "vm".')
    return name


def other_hosts(value: Any, here: str) -> list[str] | None:
    """The other ones of a list of host names, or None where no list was given. `here`, which runs the
    VM, may be in it: the list is then the same wherever the VM runs."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise KvmftError("bad_request", f"allowed_hosts is {value!r}.", "Give a list of host names.")
    others = sorted({each for each in value if each != here})
    if value and not others:
        raise KvmftError("bad_request", f"allowed_hosts has only {here}, which runs the VM.",
                         "Add a host for the secondary.")  # fmt: skip
    return others
