"""Metrics for Prometheus: what this host knows of its VMs, its peers and its arbiter."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kvmft import __version__
from kvmft.adapters.certificate import expiry
from kvmft.agent.exposition import CONTENT_TYPE, Exposition
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent
    from kvmft.agent.vm import ManagedVm

STATES = ("disabled", "starting", "protected", "need_secondary", "suspended", "failing_over",
          "fenced")  # fmt: skip
LIBVIRT_PATIENCE = 2.0
REQUEST_PATIENCE = 5.0
MAX_REQUEST = 8 << 10
MAX_CONNECTIONS = 16
PEERS_EVERY = 10.0
LISTEN_AGAIN = 10.0


class Metrics:
    """Serves GET /metrics over plain HTTP: figures and names, nothing of a guest's data."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._peers: dict[str, bool] = {}
        self._connections = 0

    # -- serving ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve for ever, if the configuration names a port. An address that is not there is
        waited for: metrics must not keep the agent from its VMs."""
        address, port = self._agent.config.metrics_address, self._agent.config.metrics_port
        if port is None:
            return
        watch = asyncio.create_task(self._watch_peers())
        told = ""
        try:
            while True:
                try:
                    server = await asyncio.start_server(self._answer, address, port, limit=MAX_REQUEST)
                except OSError as error:
                    if str(error) != told:
                        told = str(error)
                        self._agent.events.add(None, "failed", f"metrics are not served: {told}")
                    await asyncio.sleep(LISTEN_AGAIN)
                    continue
                async with server:
                    await server.serve_forever()
        finally:
            watch.cancel()

    async def _watch_peers(self) -> None:
        while True:
            for peer in sorted(self._agent.config.peers):
                try:
                    await self._agent.peers.call(peer, "peer_ping")
                    self._peers[peer] = True
                except KvmftError:
                    self._peers[peer] = False
            await asyncio.sleep(PEERS_EVERY)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                writer.write(await asyncio.wait_for(self._reply(reader), REQUEST_PATIENCE))
                await writer.drain()
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away, was too slow or sent what is no request
        finally:
            self._connections -= 1
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        request = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].split()
        if len(request) != 3 or request[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "Only GET.\n", True)
        if request[1].split(b"?")[0] != b"/metrics":
            return _response("404 Not Found", "Metrics are at /metrics.\n", request[0] == b"GET")
        return _response("200 OK", await self.text(), request[0] == b"GET")

    # -- collecting ---------------------------------------------------------------------------------

    async def text(self) -> str:
        """The exposition as of now."""
        out = Exposition()
        agent = self._agent
        out.gauge("kvmft_build_info", "Version of kvmft and name of the host; always 1.", 1,
                  version=__version__, host=agent.config.host)  # fmt: skip
        found = await self._executions()
        out.gauge("kvmft_libvirt_up", "Whether libvirt answers.", float(found is not None))
        out.gauge("kvmft_arbiter_up", "Whether the arbiter answers and compares.",
                  float(bool(agent.arbiter_ok)), type=agent.config.arbiter["type"])  # fmt: skip
        out.gauge("kvmft_host_maintenance", "Whether this host is in maintenance: it takes no secondary.",
                  float(agent.maintenance.on))  # fmt: skip
        for peer, up in sorted(self._peers.items()):
            out.gauge("kvmft_peer_up", "Whether the peer's agent answers over the FT network.",
                      float(up), peer=peer)  # fmt: skip
        self._certificates(out)
        for vm in agent.all_managed():
            _one(out, vm, None if found is None else found.get(vm.state.vm))
        return out.text()

    async def _executions(self) -> dict[str, str] | None:
        """Per VM what libvirt says: running, paused or off; None when it does not answer."""
        names = [vm.state.vm for vm in self._agent.all_managed()]
        try:
            return await asyncio.wait_for(
                asyncio.to_thread(lambda: {name: self._agent.host.execution(name) for name in names}),
                LIBVIRT_PATIENCE,
            )
        except (KvmftError, TimeoutError):
            return None

    def _certificates(self, out: Exposition) -> None:
        tls = self._agent.config.tls
        for name, path in (("host", tls.cert), ("ca", tls.ca)):
            try:
                left = expiry(path) - time.time()
            except KvmftError:
                left = 0.0  # unreadable is as good as expired: no connection will come up with it
            out.gauge("kvmft_certificate_expiry_seconds", "Seconds until the certificate expires.",
                      round(left), certificate=name)  # fmt: skip


def _response(status: str, body: str, with_body: bool) -> bytes:
    data = body.encode()
    head = (f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(data)}\r\n"
            "Connection: close\r\n\r\n")  # fmt: skip
    return head.encode() + (data if with_body else b"")


def _one(out: Exposition, vm: ManagedVm, execution: str | None) -> None:
    """Everything of one VM. Figures that do not exist yet are left out."""
    name, state, figures = vm.state.vm, vm.shown[0], vm.figures
    for each in STATES:
        out.gauge("kvmft_vm_state", "The VM's state on this host: 1 for the one it is in.",
                  float(state == each), vm=name, state=each)  # fmt: skip
    out.gauge("kvmft_vm_generation", "Newest generation that this host holds of the VM.",
              figures.get("generation"), vm=name)  # fmt: skip
    primary = vm.state.role == "primary"
    if execution is not None:
        # A primary is paused for a moment at each checkpoint; a secondary until it takes over.
        runs = execution == "running" or (primary and execution == "paused")
        out.gauge("kvmft_vm_running_here", "Whether the VM runs here and its output may be seen.",
                  float(runs and not vm.output_is_shut), vm=name)  # fmt: skip
    out.gauge("kvmft_vm_protection_wanted", "Whether it runs here and shall be protected.",
              float(primary and vm.wants_protection), vm=name)  # fmt: skip
    out.gauge("kvmft_vm_protected", "Whether it runs here and its secondary can take over.",
              float(primary and state == "protected"), vm=name)  # fmt: skip
    out.counter("kvmft_vm_unprotected_seconds_total",
                "Seconds in which it ran here and should have been protected, but was not.",
                round(vm.exposure.seconds, 1), vm=name)  # fmt: skip
    for kind in ("unplanned", "ordered", "planned"):
        out.counter("kvmft_failovers_total", "How often this host took the VM over.",
                    vm.exposure.failovers.get(kind, 0), vm=name, kind=kind)  # fmt: skip
    if primary:
        _of_a_primary(out, vm)


def _of_a_primary(out: Exposition, vm: ManagedVm) -> None:
    name, figures, counters = vm.state.vm, vm.figures, vm.counters
    for key, family, text in (
        ("epochs", "kvmft_vm_epochs_total", "Checkpoints that the secondary acknowledged."),
        ("pages", "kvmft_vm_pages_total", "Pages of 4 KiB in checkpoints."),
        ("log_bytes", "kvmft_vm_log_bytes_total", "Bytes sent on the FT log."),
        ("log_saved_bytes", "kvmft_vm_log_saved_bytes_total", "Bytes of pages in checkpoints that the secondary had already."),
    ):
        out.counter(family, text, counters.plain[key], vm=name)
    for key, family, text in (
        ("pause", "kvmft_vm_pause_seconds", "Pauses of the VM for checkpoints."),
        ("commit", "kvmft_vm_commit_seconds", "Time from a capture to its acknowledgement."),
    ):
        if key in counters.histograms:
            out.histogram(family, text, counters.histograms[key], vm=name)
    held, sync = figures.get("held_bytes"), figures.get("sync_percent")
    age, loss = figures.get("last_commit_age_ms"), figures.get("guest_clock_loss_ppm")
    out.gauge("kvmft_vm_held_bytes", "Output that waits for a commit.", held, vm=name)
    out.gauge("kvmft_vm_beacons_missed", "Whether it is protected and the management network shows no life of its secondary.",
              float(figures.get("beacons_missed") is not None), vm=name)  # fmt: skip
    out.gauge("kvmft_vm_sync_ratio", "Progress of the sync, 0 to 1.",
              None if sync is None else sync / 100, vm=name)  # fmt: skip
    if age is not None and vm.worker is not None:
        # The figure is as old as the message that brought it; a stalled worker sends none.
        age = age / 1000 + time.monotonic() - counters.figures_at
        out.gauge("kvmft_vm_last_commit_age_seconds", "Time since the last commit.",
                  round(age, 3), vm=name)  # fmt: skip
    out.gauge("kvmft_vm_guest_clock_loss_ratio", "Share of the time that the guest's clock lost.",
              None if loss is None else loss / 1e6, vm=name)  # fmt: skip
