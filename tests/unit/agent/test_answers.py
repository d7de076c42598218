"""Who waits for a worker's answer hears how it ended, and where the VM is now."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvmft.agent.answers import Answers
from kvmft.errors import KvmftError


class Worker:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, **message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(
    ("outcome", "code", "where"),
    [(("fenced", "node-b holds generation 12 (SOLO); ours was 11"), "switch_fenced", "runs on the other host"),
     (("solo", "the secondary did not take over in time"), "switch_failed", "goes on here"),
     (None, "switch_failed", "goes on here")],
)  # fmt: skip
def test_a_switchover_that_is_not_handed_over_says_where_the_vm_is(
    outcome: tuple[str, str] | None, code: str, where: str
) -> None:
    async def order() -> None:
        answers, worker = Answers("v"), Worker()
        waiting = asyncio.create_task(answers.switch(worker))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert worker.sent == [{"cmd": "switch"}] and answers.handing_over
        answers.worker_ended(outcome)
        await waiting

    with pytest.raises(KvmftError) as caught:
        asyncio.run(order())
    assert caught.value.code == code and where in str(caught.value)
    assert (outcome[1] if outcome else "the worker was killed") in str(caught.value)
