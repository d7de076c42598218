"""roles/arbiter: what it refuses. Only dry runs: it would set up etcd on this machine."""

from __future__ import annotations

from pathlib import Path

from tests.unit.roles.harness import Controller

PLAY = [{"hosts": "kvmft_arbiter", "gather_facts": False, "roles": ["kvmft.core.arbiter"]}]


def controller(folder: Path) -> Controller:
    host = {"kvmft_management_address": "127.0.0.1", "kvmft_pki_host_dir": str(folder / "pki")}
    return Controller(folder, {"kvmft_arbiter": {"hosts": {"witness": host}}})


def test_an_etcd_of_somebody_else_is_not_taken_over(tmp_path: Path) -> None:
    made = controller(tmp_path)
    made.active("etcd.service")
    changed, output = made.play(PLAY, "--check")
    told = " ".join(output.split())
    assert changed == -1 and "was not set up by kvmft" in told and "kvmft_arbiter_take_over" in told
    assert "Install the packages of etcd" not in told


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    changed, output = controller(tmp_path).play(PLAY, "--check", "-e", "kvmft_arbiter_state=gone")
    assert changed == -1 and "value of kvmft_arbiter_state must be one of" in " ".join(output.split())


def test_nothing_is_taken_from_a_machine_that_has_no_arbiter(tmp_path: Path) -> None:
    changed, output = controller(tmp_path).play(PLAY, "--check", "-e", "kvmft_arbiter_state=absent",
                                                "-e", f"kvmft_arbiter_data_dir={tmp_path}/etcd")  # fmt: skip
    assert changed == 0, output
