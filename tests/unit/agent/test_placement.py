"""The secondary goes where it may and where there is room; else every reason is given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvmft.agent.placement import Offer, ask_all, choose, permitted
from kvmft.agent.requests import other_hosts
from kvmft.errors import KvmftError

FULL = KvmftError("memory", "The secondary needs 2048 MiB of memory and has 512 MiB.", "Stop VMs.")


def test_the_host_that_had_it_is_kept() -> None:
    assert choose([Offer("b", 1), Offer("c", 9)], "b", "v") == "b"


def test_else_the_host_with_the_most_free_memory() -> None:
    assert choose([Offer("b", 1, (FULL,)), Offer("c", 9), Offer("d", 4)], "b", "v") == "c"
    assert choose([Offer("b", 1), Offer("c", 9)], "", "v") == "c"


def test_when_none_can_each_hosts_reasons_name_resource_need_and_have() -> None:
    with pytest.raises(KvmftError) as caught:
        choose([Offer("b", 1, (FULL,)), Offer("c", 0, (FULL, FULL))], "b", "v")
    assert caught.value.code == "no_host"
    texts = [str(reason) for reason in caught.value.reasons]
    assert len(texts) == 3 and texts[0].startswith("b: ") and texts[1].startswith("c: ")
    assert all("2048" in text and "512" in text for text in texts)


def test_a_pairs_only_reason_is_in_the_message_itself() -> None:
    with pytest.raises(KvmftError, match="2048 MiB"):
        choose([Offer("b", 1, (FULL,))], "b", "v")


def test_allowed_hosts_bind_the_secondary() -> None:
    assert permitted(["c", "b"], []) == ["b", "c"]
    assert permitted(["c", "b"], ["c"]) == ["c"]
    with pytest.raises(KvmftError) as caught:
        permitted(["b"], ["z"])
    assert caught.value.code == "peer_unknown"


def test_a_host_that_does_not_answer_lacks_that() -> None:
    class Peers:
        async def call(self, peer: str, op: str, **args: Any) -> Any:
            if peer == "b":
                raise KvmftError("ft_network_down", "b does not answer.", "Check cabling.")
            return {"memory": 7, "lacking": [FULL.to_dict()]}

    offers = asyncio.run(ask_all(Peers(), ["b", "c"], vm="v"))
    assert [offer.lacking[0].code for offer in offers] == ["ft_network_down", "memory"]
    assert offers[1].memory == 7


@pytest.mark.parametrize(("given", "others"), [(None, None), ([], []), (["c", "a", "b", "c"], ["b", "c"])])
def test_the_host_that_runs_the_vm_may_be_among_the_allowed(
    given: list[str] | None, others: list[str] | None
) -> None:
    assert other_hosts(given, "a") == others


@pytest.mark.parametrize("given", [["a"], "b", [1]])
def test_a_list_that_leaves_no_host_or_is_none_is_refused(given: object) -> None:
    with pytest.raises(KvmftError):
        other_hosts(given, "a")
