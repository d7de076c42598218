"""Where the secondary goes: never on the primary's host, only on allowed hosts, where there is room.

The host that has (or had) the secondary is kept while it can take it, because its replica needs the
least to be sent. Else the host with the most free memory is taken. When none can, the error says of
each host which resource it lacks, what it has and what is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from kvmft.agent.lines import error_of
from kvmft.errors import KvmftError


class Ask(Protocol):
    """Asks the agent of another host, as `Peers.call` does."""

    async def call(self, peer: str, op: str, **args: Any) -> Any:
        """The answer to `op` of host `peer`."""


@dataclass(frozen=True)
class Offer:
    """What a host said: free memory in bytes, and everything it lacks for the standby."""

    host: str
    memory: int
    lacking: tuple[KvmftError, ...] = ()


def permitted(hosts: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """The other hosts on which the secondary may be; an empty `allowed` permits all of them.

    KvmftError `peer_unknown` when a host is allowed that does not exist here.
    """
    known, wanted = sorted(hosts), list(allowed)
    for name in wanted:
        if name not in known:
            raise KvmftError("peer_unknown", f"Host {name} is not another host of this cluster.",
                             f"Known: {', '.join(known)}.")  # fmt: skip
    return [host for host in known if not wanted or host in wanted]


def choose(offers: Iterable[Offer], preferred: str, vm: str) -> str:
    """The host for the secondary of `vm`; KvmftError `no_host` with every reason of every host."""
    offers = list(offers)
    able = [offer for offer in offers if not offer.lacking]
    for offer in able:
        if offer.host == preferred:
            return preferred
    if able:
        return max(able, key=lambda offer: (offer.memory, offer.host)).host
    reasons = [
        KvmftError(error.code, f"{offer.host}: {error.message}", error.remedy)
        for offer in offers
        for error in offer.lacking
    ]
    if len(offers) == 1:
        raise KvmftError("no_host", f"{offers[0].host} cannot take the secondary of VM {vm}: "
                         + " ".join(str(error) for error in offers[0].lacking),
                         "Mend every reason.", reasons)  # fmt: skip
    raise KvmftError("no_host", f"No host can take the secondary of VM {vm}.",
                     "Mend every reason of one host.", reasons)  # fmt: skip


async def ask_all(ask: Ask, hosts: Iterable[str], **request: Any) -> list[Offer]:
    """Ask every host of `hosts` at once what it would lack; one that does not answer lacks that."""

    async def one(host: str) -> Offer:
        try:
            answer = await ask.call(host, "standby_admit", **request)
        except KvmftError as error:
            return Offer(host, 0, (error,))
        return Offer(host, int(answer["memory"]), tuple(map(error_of, answer["lacking"])))

    return list(await asyncio.gather(*(one(host) for host in hosts)))
