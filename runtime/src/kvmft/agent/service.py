"""The agent: control socket, peers, and the loop that keeps every VM's state moving."""

from __future__ import annotations

import asyncio
import grp
import os
import platform
import signal
from collections.abc import Sequence
from typing import Any

from kvmft import __version__
from kvmft.agent import doctor
from kvmft.agent.arbiterwatch import ArbiterWatch
from kvmft.agent.config import Config, check_options
from kvmft.agent.events import EventLog
from kvmft.agent.farewells import Farewell, Farewells
from kvmft.agent.forecasts import Forecasts
from kvmft.agent.history import History
from kvmft.agent.host import Host, available_memory
from kvmft.agent.lines import MAX_LINE, serve
from kvmft.agent.maintenance import Maintenance
from kvmft.agent.metrics import Metrics
from kvmft.agent.peers import Peers
from kvmft.agent.placement import ask_all, choose, permitted
from kvmft.agent.replicas import Replicas
from kvmft.agent.store import Store, VmState
from kvmft.agent.vm import ManagedVm
from kvmft.core.admission import Request
from kvmft.core.compliance import compliance
from kvmft.core.domain import describe
from kvmft.core.qemu_version import other_version
from kvmft.errors import KvmftError

SOCKET = "/run/kvmft/control.sock"
EVENTS = "/var/lib/kvmft/events.jsonl"
LOOP = 0.5
ARBITER_EVERY = 10.0
GROUP = "kvmft"


class Agent:
    """Everything one host does for its protected VMs."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.host = Host()
        self.store = Store()
        self.events = EventLog(EVENTS, config.host)
        self.peers = Peers(config)
        self.history = History(self)
        self.forecasts = Forecasts(self)
        self.arbiter_ok: bool | None = None
        self.arbiter_reason = ""
        self.arbiter_watch = ArbiterWatch(config, self.store.root)
        self.farewells = Farewells(
            os.path.join(os.path.dirname(self.store.root), "farewells.json"), self._tell_to_discard,
            lambda vm, event, reason: self.events.add(vm or None, event, reason),
        )  # fmt: skip
        self.maintenance = Maintenance(
            os.path.join(os.path.dirname(self.store.root), "maintenance.json"), config.host
        )
        self._vms: dict[str, ManagedVm] = {}
        self._stopping = asyncio.Event()

    # -- the main path ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM. VMs are left as they are; their output waits for our return."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stopping.set)
        # A token lets libvirt start a standby; one that a killed agent left would let it start later.
        self.host.clear_tokens()
        states, damaged = self.store.all_with_errors()
        for state in states:
            self._vms[state.vm] = ManagedVm(self, state)
        for error in damaged:
            self.events.add(None, "failed", str(error))
        peers = await self._listen_for_peers()
        control = await self._listen_for_control()
        self.events.add(None, "agent_started", f"kvmft {__version__}")
        tasks = [asyncio.create_task(self._keep_moving()), asyncio.create_task(self._watch_arbiter()),
                 asyncio.create_task(Metrics(self).run()), asyncio.create_task(self.farewells.run())]  # fmt: skip
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        for server in (peers, control):
            server.close()

    async def _keep_moving(self) -> None:
        while True:
            for vm in list(self._vms.values()):
                asyncio.create_task(vm.reconcile())
                vm.watch_exposure()
            await asyncio.sleep(LOOP)

    async def _watch_arbiter(self) -> None:
        while True:
            await self.probe_arbiter()
            await asyncio.sleep(ARBITER_EVERY)

    async def _tell_to_discard(self, farewell: Farewell) -> None:
        await self.peers.call(farewell.peer, "standby_discard", vm=farewell.vm,
                              session=farewell.session)  # fmt: skip

    async def _listen_for_peers(self) -> asyncio.Server:
        """Wait for the FT network: at boot the agent may be up before the address is."""
        told = ""
        while True:
            try:
                return await self.peers.listen(self._peer_request)
            except KvmftError as error:
                if str(error) != told:
                    told = str(error)
                    self.events.add(None, "failed", told)
                await asyncio.sleep(1)

    async def _listen_for_control(self) -> asyncio.Server:
        os.makedirs(os.path.dirname(SOCKET), exist_ok=True)
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)
        before = os.umask(0o117)
        try:
            server = await asyncio.start_unix_server(
                lambda reader, writer: serve(reader, writer, self._request), SOCKET, limit=MAX_LINE
            )
        finally:
            os.umask(before)
        try:
            os.chown(SOCKET, 0, grp.getgrnam(GROUP).gr_gid)
        except KeyError:
            self.events.add(None, "failed", f"group {GROUP} does not exist; root alone may ask")
        return server

    # -- what VMs need of the agent -----------------------------------------------------------------

    def managed(self, vm: str) -> ManagedVm | None:
        """The VM's entry, if kvmft knows it here."""
        return self._vms.get(vm)

    def all_managed(self) -> list[ManagedVm]:
        """Every VM that kvmft knows here, by name."""
        return [self._vms[name] for name in sorted(self._vms)]

    def forget(self, vm: ManagedVm) -> None:
        """Protection is off: the VM is an ordinary one again."""
        self._vms.pop(vm.state.vm, None)
        vm.exposure.end()
        self.store.remove(vm.state.vm)
        if vm.state.role == "primary" and vm.state.autostart:
            try:
                self.host.set_autostart(vm.state.vm, True)
            except KvmftError as error:
                self.events.add(vm.state.vm, "failed", str(error))
        self.events.add(vm.state.vm, "state", "fault tolerance is off", state="disabled")

    async def probe_arbiter(self) -> None:
        """Let the arbiter prove that it compares, and that its history goes forward."""
        await self.arbiter_watch.look()
        self.arbiter_ok, self.arbiter_reason = self.arbiter_watch.ok, self.arbiter_watch.reason

    # -- requests of this host's people and modules -------------------------------------------------

    async def _request(self, op: str, args: dict[str, Any]) -> Any:
        match op:
            case "ping":
                return {"host": self.config.host, "version": __version__}
            case "host_info":
                return await self._host_info()
            case "host_maintenance":
                return self._maintain(args)
            case "vm_list":
                return [await self._status(name) for name in sorted(self._vms)]
            case "vm_status":
                return await self._status(_name(args))
            case "vm_check":
                return {"findings": [each.to_dict() for each in await self._findings(_name(args))]}
            case "vm_enable":
                return await self._enable(_name(args), args)
            case "vm_disable":
                return await self._stop(_name(args), "disabled", bool(args.get("check")))
            case "vm_suspend":
                return await self._stop(_name(args), "suspended", bool(args.get("check")))
            case "vm_resume":
                return await self._enable(_name(args), args)
            case "vm_move_secondary":
                return await self._move_secondary(_name(args), args)
            case "vm_restart_secondary":
                return await self._restart_secondary(_name(args), args)
            case "vm_failover":
                return await self._failover(_name(args), args)
            case "vm_audit":
                return await self._known(_name(args)).audit()
            case "vm_forecast":
                return await self.forecasts.answer(_name(args), args)
            case "events" | "events_cluster" | "events_verify":
                return await self.history.answer(op, args)
            case "doctor":
                return await doctor.run(self)
        raise KvmftError("unknown_op", f"The agent does not know the request {op!r}.",
                         "Use a kvmft CLI and collection of the agent's version.")  # fmt: skip

    def _known(self, vm: str) -> ManagedVm:
        found = self._vms.get(vm)
        if found is None:
            raise KvmftError("not_enabled", f"Fault tolerance of VM {vm} is not on here.",
                             f"Turn it on: kvmft enable {vm}.")  # fmt: skip
        return found

    async def _status(self, vm: str) -> dict[str, Any]:
        known = self._vms.get(vm)
        if known is not None:
            try:
                running = await asyncio.to_thread(self.host.is_running, vm)
            except KvmftError:
                running = False  # what kvmft itself knows is shown also without libvirt
            return known.status(running and known.state.role == "primary")
        found = await asyncio.to_thread(self.host.find, vm)
        return {
            "vm": vm, "uuid": found.domain.uuid, "state": "disabled", "reason": "not turned on",
            "desired": "disabled", "role": "none", "primary": self.config.host, "secondary": None,
            "accelerator": found.domain.accelerator, "running": found.running,
            "switched_off": not found.running, "options": {}, "allowed_hosts": [],
            "arbiter": {"type": self.config.arbiter["type"], "ok": self.arbiter_ok},
        }  # fmt: skip

    async def _findings(
        self, vm: str, preferred: str = "", allowed: Sequence[str] = ()
    ) -> list[KvmftError]:
        """Every reason against protecting `vm`, found without changing anything."""
        found = await asyncio.to_thread(self.host.find, vm)
        reasons = compliance(found.live, found.snapshots)
        if found.running:
            reasons += await asyncio.to_thread(self.host.blockers, vm)
        reasons += await asyncio.to_thread(doctor.kernel_findings)
        await self.probe_arbiter()
        if not self.arbiter_ok:
            reasons.append(KvmftError(
                "no_arbiter", f"Nobody could decide who runs: {self.arbiter_reason}",
                "Bring the arbiter up; without one there is no failover."))  # fmt: skip
        try:
            disks = await asyncio.to_thread(self.host.disk_sizes, vm, found.domain)
            hosts = permitted(self.config.peers, allowed)
            request = await asyncio.to_thread(self.host.request, found.domain)
            version = await asyncio.to_thread(self.host.qemu_of, found)
            offers = await ask_all(self.peers, hosts, vm=vm, xml=found.xml, disks=disks,
                                   qemu_version=version, facts=request.to_dict())  # fmt: skip
            choose(offers, preferred, vm)
        except KvmftError as error:
            reasons += error.reasons or [error]
        return reasons

    async def _enable(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        options = check_options(args.get("options") or {}, "options")
        wanted = str(args.get("secondary") or "")
        allowed = _hosts(args.get("allowed_hosts"), self.config.host)
        permitted(self.config.peers, [wanted, *(allowed or [])] if wanted else allowed or [])
        known = self._vms.get(vm)
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
            return {"changed": False, "status": await self._status(vm)}
        if known is not None and known.state.role == "stale":
            raise KvmftError(
                "stale", f"What {self.config.host} has of VM {vm} is of the past.",
                f"Turn it on where it runs, probably {known.state.peer}.",
            )  # fmt: skip
        permits = allowed if allowed is not None else known.state.allowed if known else []
        reasons = await self._findings(vm, wanted, [wanted] if wanted else permits)
        if reasons:
            raise KvmftError("not_compliant", f"VM {vm} cannot be protected now: "
                             + " ".join(str(each) for each in reasons),
                             "Mend every reason; the VM was not touched.", reasons)  # fmt: skip
        if args.get("check"):
            return {"changed": True, "status": await self._status(vm)}
        if known is None:
            found = await asyncio.to_thread(self.host.find, vm)
            state = VmState(vm, found.domain.uuid, peer=wanted, options=options)
            state.autostart = await asyncio.to_thread(self.host.set_autostart, vm, False)
            known = self._vms[vm] = ManagedVm(self, state)
            known.shown = ("starting", "turned on")
        known.state.desired = "enabled"
        if options:
            known.state.options = options
        if allowed is not None:
            known.state.allowed = allowed
        self.store.save(known.state)
        self.events.add(vm, "enabled", "turned on")
        if wanted and wanted != known.state.peer and known.protects:
            await known.move_secondary(wanted)
        elif wanted:
            known.state.peer = wanted
            self.store.save(known.state)
        asyncio.create_task(known.reconcile())
        return {"changed": True, "status": await self._status(vm)}

    async def _stop(self, vm: str, desired: str, check: bool) -> dict[str, Any]:
        known = self._vms.get(vm)
        if known is None and desired == "suspended":
            raise KvmftError("not_enabled", f"Fault tolerance of VM {vm} is not on.",
                             f"Turn it on first: kvmft enable {vm}.")  # fmt: skip
        if known is None:
            return {"changed": False, "status": await self._status(vm)}
        if known.state.role == "secondary":
            raise KvmftError("runs_elsewhere", f"VM {vm} runs on {known.state.peer}.",
                             f"Ask {known.state.peer}.")  # fmt: skip
        if known.state.role == "stale":
            return await self._forget_stale(known, desired, check)
        changed = known.state.desired != desired
        if changed and not check:
            self.events.add(vm, desired, "asked by a person")
            await known.stop_protection(desired)
        return {"changed": changed, "status": await self._status(vm)}

    async def _forget_stale(self, known: ManagedVm, desired: str, check: bool) -> dict[str, Any]:
        """Of a VM that libvirt does not have any more nothing could start from what is of the past."""
        vm = known.state.vm
        if desired == "suspended" or await asyncio.to_thread(self.host.is_defined, vm):
            raise KvmftError(
                "stale", f"What {self.config.host} has of VM {vm} is of the past; kvmft keeps it "
                "from starting.",
                f"Turn it off where it runs, probably {known.state.peer}. To forget it here, remove "
                f"its definition first: virsh undefine {vm}.",
            )  # fmt: skip
        shown = {**await self._status(vm), "state": "disabled", "desired": "disabled", "role": "none",
                 "reason": "the VM is not defined here any more"}  # fmt: skip
        if not check:
            self.forget(known)
        return {"changed": True, "status": shown}

    async def _failover(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        known, mode = self._known(vm), str(args.get("mode") or "unplanned")
        target = str(args.get("target") or "")
        if mode not in ("unplanned", "planned", "test"):
            raise KvmftError("failover_mode", f"Failover mode {mode!r} is unknown.",
                             "Use unplanned, planned or test.")  # fmt: skip
        if mode == "test":
            raise KvmftError("not_offered", "This version does not offer test failovers yet.",
                             "Use mode planned or unplanned.")  # fmt: skip
        state = known.state
        where = self.config.host if state.role == "primary" else state.peer
        if target == where:
            return {"changed": False, "status": await self._status(vm)}
        other = state.peer if state.role == "primary" else self.config.host
        if target and target != other:
            raise KvmftError(
                "not_the_secondary", f"The secondary of VM {vm} is on {other or 'no host'}, not on "
                f"{target}.", f"Move it there first: kvmft secondary move {vm} {target}.",
            )  # fmt: skip
        if not args.get("check"):
            await (self._switch if mode == "planned" else self._take_over)(known)
        return {"changed": True, "status": await self._status(vm)}

    async def _switch(self, known: ManagedVm) -> None:
        if known.state.role == "primary":
            await known.switch()
        else:
            await self.peers.call(known.state.peer, "peer_switch", vm=known.state.vm)

    async def _take_over(self, known: ManagedVm) -> None:
        if known.state.role == "secondary":
            known.claim()
        else:
            await self.peers.call(known.state.peer, "peer_claim", vm=known.state.vm)

    async def _move_secondary(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        known, target = self._primary_of(vm), str(args.get("target") or "")
        permitted(self.config.peers, [target])
        changed = known.state.peer != target
        if changed and not args.get("check"):
            await known.move_secondary(target)
        return {"changed": changed, "status": await self._status(vm)}

    async def _restart_secondary(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        """A test: the standby's QEMU is killed, and protection has to come back by itself."""
        known = self._primary_of(vm)
        if known.shown[0] != "protected":
            raise KvmftError("not_protected", f"VM {vm} is {known.shown[0]} ({known.shown[1]}).",
                             "Wait for `protected`.")  # fmt: skip
        if not args.get("check"):
            await self.peers.call(known.state.peer, "standby_kill", vm=vm)
        return {"changed": True, "status": await self._status(vm)}

    def _primary_of(self, vm: str) -> ManagedVm:
        known = self._known(vm)
        if known.state.role != "primary":
            raise KvmftError("runs_elsewhere", f"VM {vm} runs on {known.state.peer}.",
                             f"Ask {known.state.peer}.")  # fmt: skip
        return known

    async def _host_info(self) -> dict[str, Any]:
        versions = await asyncio.to_thread(self.host.versions)
        peers: dict[str, Any] = {}
        for peer in sorted(self.config.peers):
            try:
                answer = await self.peers.call(peer, "peer_ping")
                peers[peer] = {"reachable": True, "version": answer["version"],
                               "maintenance": bool(answer.get("maintenance"))}  # fmt: skip
            except KvmftError as error:
                peers[peer] = {"reachable": False, "version": None, "reason": str(error)}
        return {
            "host": self.config.host, "version": __version__, **versions,
            "kernel": platform.release(), "python": platform.python_version(),
            "accelerator": await asyncio.to_thread(doctor.accelerator), "peers": peers,
            "arbiter": {"type": self.config.arbiter["type"], "ok": self.arbiter_ok,
                        "reason": self.arbiter_reason},
            "maintenance": self.maintenance.to_dict(),
            "vms": [await self._status(name) for name in sorted(self._vms)],
        }  # fmt: skip

    def _maintain(self, args: dict[str, Any]) -> dict[str, Any]:
        """Begin or end this host's maintenance; what is on it stays as it is."""
        on, reason = args.get("on"), args.get("reason")
        if not isinstance(on, bool) or not isinstance(reason, (str, type(None))):
            raise KvmftError("bad_request", "The request does not say whether maintenance is on.",
                             'Give "on" as true or false, and "reason" as text.')  # fmt: skip
        changed = self.maintenance.change(on, reason, bool(args.get("check")))
        if changed and not args.get("check"):
            text = "takes no new secondary" if on else "takes secondaries again"
            why = f": {self.maintenance.reason}" if self.maintenance.reason else ""
            self.events.add(None, "maintenance", f"{self.config.host} {text}{why}", on=on)
        return {"changed": changed, "maintenance": self.maintenance.to_dict()}

    # -- requests of other agents -------------------------------------------------------------------

    async def _peer_request(self, caller: str, op: str, args: dict[str, Any]) -> Any:
        match op:
            case "peer_ping":
                return {"host": self.config.host, "version": __version__,
                        "maintenance": self.maintenance.on}  # fmt: skip
            case "peer_events" | "peer_events_verify":
                return await self.history.answer(op, args)
            case "peer_vm_status":
                return await self._status(_name(args))
            case "peer_claim":
                self._known(_name(args)).claim()
                return {}
            case "peer_switch":
                await self._primary_of(_name(args)).switch()
                return {}
            case "standby_admit":
                return await self._standby_admit(args)
            case "standby_prepare":
                return {"port": await self._standby_prepare(caller, args)}
            case "standby_kill":
                self._known(_name(args)).kill_standby()
                return {}
            case "standby_discard":
                known = self._vms.get(_name(args))
                # One that was told late may mean a standby that was made anew since.
                if known is not None and known.state.role != "primary" and (
                    args.get("session") in (None, known.state.session)
                ):
                    await known.discard(caller)
                return {}
        raise KvmftError("unknown_op", f"The agent does not know the request {op!r}.",
                         "Both hosts need the same kvmft version.")  # fmt: skip

    async def _standby_admit(self, args: dict[str, Any]) -> dict[str, Any]:
        """What this host lacks for the standby of a VM; nothing is changed."""
        vm = _name(args)
        known = self._vms.get(vm)
        replicas = Replicas(os.path.join(self.store.root, vm))
        disks = {disk["path"] for disk in known.state.disks} if known else set()
        lacking = await asyncio.to_thread(
            self.host.admit, describe(args["xml"]), args["disks"], self.config.storage_pool,
            lambda path: replicas.owns(path) or path in disks, Request.read(args.get("facts")),
        )  # fmt: skip
        here = (await asyncio.to_thread(self.host.versions))["qemu"]
        lacking += other_version(args.get("qemu_version", here), here, self.config.host)
        lacking += await self._arbiter_lacking() + self.maintenance.lacking()
        return {"memory": available_memory(), "lacking": [error.to_dict() for error in lacking]}

    async def _arbiter_lacking(self) -> list[KvmftError]:
        """A secondary that cannot ask the arbiter protects nothing: it could never take over."""
        if not self.arbiter_ok:
            await self.probe_arbiter()
        if self.arbiter_ok:
            return []
        host = self.config.host
        return [KvmftError("no_arbiter", f"{host} cannot ask the arbiter: {self.arbiter_reason}",
                           f"See `kvmft doctor` on {host}.")]  # fmt: skip

    async def _standby_prepare(self, caller: str, args: dict[str, Any]) -> int:
        vm = _name(args)
        here = (await asyncio.to_thread(self.host.versions))["qemu"]
        for reason in other_version(args["qemu_version"], here, self.config.host):
            raise reason
        known = self._vms.get(vm)
        if known is None:
            if await asyncio.to_thread(self.host.is_running, vm):
                raise KvmftError("runs_here", f"A VM {vm} runs on {self.config.host} already.",
                                 "Rename or stop one of the two.")  # fmt: skip
            known = self._vms[vm] = ManagedVm(self, VmState(vm, args["uuid"], role="stale"))
        return await known.prepare(args, caller)


def _name(args: dict[str, Any]) -> str:
    name = args.get("vm")
    if not isinstance(name, str) or not name:
        raise KvmftError("bad_request", "The request names no VM.", 'Give "vm".')
    return name


def _hosts(value: Any, here: str) -> list[str] | None:
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
