"""The agent: control socket, peers, and the loop that keeps every VM's state moving."""

from __future__ import annotations

import asyncio
import grp
import os
import signal

from kvmft import __version__
from kvmft.agent.arbiterwatch import ArbiterWatch
from kvmft.agent.config import Config
from kvmft.agent.events import EventLog
from kvmft.agent.farewells import Farewell, Farewells
from kvmft.agent.forecasts import Forecasts
from kvmft.agent.history import History
from kvmft.agent.host import Host
from kvmft.agent.lines import MAX_LINE, serve
from kvmft.agent.logspeed import LogSpeed
from kvmft.agent.maintenance import Maintenance
from kvmft.agent.metrics import Metrics
from kvmft.agent.peer_requests import PeerRequests
from kvmft.agent.peers import Peers
from kvmft.agent.requests import Requests
from kvmft.agent.store import Store, VmState
from kvmft.agent.vm import ManagedVm
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
        self.log_speed = LogSpeed(config, self.peers)
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
        self.requests = Requests(self)
        self.peer_requests = PeerRequests(self)
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
            self.adopt(state)
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
                return await self.peers.listen(self.peer_requests.answer)
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
                lambda reader, writer: serve(reader, writer, self.requests.answer), SOCKET, limit=MAX_LINE
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

    def known(self, vm: str) -> ManagedVm:
        """The VM's entry; KvmftError when fault tolerance is not on for it."""
        found = self._vms.get(vm)
        if found is None:
            raise KvmftError("not_enabled", f"Fault tolerance of VM {vm} is not on here.",
                             f"Turn it on: kvmft enable {vm}.")  # fmt: skip
        return found

    def primary_of(self, vm: str) -> ManagedVm:
        """The VM's entry; KvmftError unless it runs here."""
        known = self.known(vm)
        if known.state.role != "primary":
            raise KvmftError("runs_elsewhere", f"VM {vm} runs on {known.state.peer}.",
                             f"Ask {known.state.peer}.")  # fmt: skip
        return known

    def adopt(self, state: VmState) -> ManagedVm:
        """Look after one more VM from now on."""
        made = self._vms[state.vm] = ManagedVm(self, state)
        return made

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
