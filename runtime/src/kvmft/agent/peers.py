"""Agent to agent: request lines over mutual TLS 1.3, names pinned to the inventory."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from kvmft.adapters.ftlog import context
from kvmft.agent.config import Config
from kvmft.agent.lines import MAX_LINE, call, serve
from kvmft.errors import KvmftError

CONNECT_TIMEOUT = 3.0
CALL_TIMEOUT = 60.0
PeerHandler = Callable[[str, str, dict[str, Any]], Awaitable[Any]]
"""Answers a request: caller, operation, arguments."""


def _names(writer: asyncio.StreamWriter) -> set[str]:
    certificate = writer.get_extra_info("peercert") or {}
    return {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}


class Peers:
    """The other hosts of the cluster."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._tls: ssl.SSLContext

    async def listen(self, handler: PeerHandler) -> asyncio.Server:
        """Answer other agents on the FT address; `handler` gets the caller's name, as its
        certificate proves it. A stranger is closed without a byte."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            callers = _names(writer) & set(self._config.peers)
            if len(callers) != 1:
                writer.close()
                return
            await serve(reader, writer, partial(handler, callers.pop()))

        tls = self._tls = context(self._config.tls, server=True)
        tls.sni_callback = self._read_anew
        address = self._config.addresses["ft"]
        try:
            return await asyncio.start_server(
                accepted, address, self._config.ft_port, ssl=tls, limit=MAX_LINE
            )
        except OSError as error:
            raise KvmftError(
                "ft_network_down",
                f"The FT address {address} cannot be listened on: {error}.",
                "Bring the FT interface up with this address, or correct the inventory.",
            ) from error

    def _read_anew(
        self, connection: ssl.SSLObject, _name: str | None, _tls: ssl.SSLContext
    ) -> None:
        """OpenSSL calls this in each handshake, whether or not the caller names a server: renewed
        certificates and another CA count from the next connection on, without a restart."""
        try:
            self._tls = context(self._config.tls, server=True)
        except KvmftError:
            pass  # they are being replaced at this moment: what was read last still holds
        connection.context = self._tls

    async def call(self, peer: str, op: str, **args: Any) -> Any:
        """Ask the agent of host `peer`; KvmftError says which part of the way failed."""
        if peer not in self._config.peers:
            raise KvmftError("peer_unknown", f"Host {peer} is not in this cluster.",
                             f"Known: {', '.join(sorted(self._config.peers))}.")  # fmt: skip
        address = self._config.peers[peer]["ft"]
        where = f"{peer} at {address}:{self._config.ft_port}"
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(
                    address, self._config.ft_port, ssl=context(self._config.tls, server=False),
                    server_hostname=peer, limit=MAX_LINE,
                ),
                CONNECT_TIMEOUT,
            )  # fmt: skip
        except ssl.SSLError as error:
            raise self._certificate(where, str(error)) from error
        except (TimeoutError, OSError) as error:
            raise KvmftError(
                "ft_network_down",
                f"{where} does not answer on the FT network: {str(error) or 'time-out'}.",
                "Check cabling, address and nftables of the FT network, and that kvmft-agent runs "
                "there.",
            ) from error
        try:
            if peer not in _names(writer):
                raise self._certificate(where, f"its certificate is for {sorted(_names(writer))}")
            return await asyncio.wait_for(call(reader, writer, op, args), CALL_TIMEOUT)
        except ssl.SSLError as error:
            raise self._certificate(where, str(error)) from error
        except (TimeoutError, OSError) as error:
            raise KvmftError("peer_silent", f"{where} did not answer {op}: {error!r}.",
                             "See the agent's log on that host.") from error  # fmt: skip
        finally:
            writer.close()

    @staticmethod
    def _certificate(where: str, why: str) -> KvmftError:
        return KvmftError(
            "peer_certificate_refused",
            f"TLS with {where} failed: {why}.",
            "Both hosts need certificates of the same CA with their inventory names; run the pki "
            "role on both.",
        )
