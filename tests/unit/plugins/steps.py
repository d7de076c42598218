"""The steps of a module's life, each also in check mode, shown in the output of the tests.

Create, repeat, modify, repeat, remove, repeat: a step predicts, does, predicts again and repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[[str, list[bool], dict[str, Any]], list[dict[str, Any]]]
WORDS = {True: "changed", False: "ok"}


class Steps:
    """`run` has a module done once for each flag that says whether in check mode: its name, the flags,
    its parameters; the results, each with a diff where the module offers one."""

    def __init__(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        self._run = run
        self._capsys = capsys

    def step(self, what: str, module: str, again: bool = False, /, **params: Any) -> dict[str, Any]:
        """The prediction is what is then done, and doing it once more changes nothing, unless it is
        such that it is a change `again`. The result of the doing."""
        results = self._run(module, [True, False, True, False], params)
        predicted, done, foreseen, repeated = results
        self._show(what, module, results)
        assert not any(each.get("failed") for each in results), results
        assert predicted["changed"] and done["changed"], results
        assert predicted["diff"] == done["diff"] and done["diff"]["before"] != done["diff"]["after"]
        assert foreseen["changed"] is repeated["changed"] is again, results
        if not again:
            for each in (foreseen, repeated):
                assert each["diff"]["before"] == each["diff"]["after"], each
        return done

    def same(self, module: str, /, **params: Any) -> dict[str, Any]:
        """A module that only looks: it changes nothing in either mode."""
        results = self._run(module, [True, False], params)
        self._show("look", module, results)
        assert not any(each.get("failed") or each["changed"] for each in results), results
        return results[-1]

    def _show(self, what: str, module: str, results: list[dict[str, Any]]) -> None:
        words = [f"{how} {'FAILED' if each.get('failed') else WORDS[each['changed']]}"
                 for how, each in zip(("check:", "run:", "check again:", "again:"), results, strict=False)]  # fmt: skip
        with self._capsys.disabled():
            print(f"\n  {module:13s} {what:10s} " + "  ".join(f"{each:20s}" for each in words).rstrip(),
                  end="", flush=True)  # fmt: skip
