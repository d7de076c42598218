"""No private key, nor the canary planted in two of them, is in what site.yml logged with -vvv."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.lab import molecule

WHERE = molecule.place()
testinfra_hosts = molecule.hosts("node-a", "node-b", "witness")


def key_lines(pem: str) -> list[str]:
    """The base64 lines of a private key."""
    found = re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)-----END", pem, re.DOTALL)
    assert found, "this is no private key"
    return [line for line in found[1].split("\n") if len(line) > 20]


@pytest.fixture(scope="module")
def log() -> str:
    """The log of the scenario: of all of -vvv, and of all of site.yml."""
    text = WHERE.site_log.read_text(errors="replace")
    assert "ESTABLISH SSH CONNECTION" in text, "the log is none of -vvv"
    assert re.search(r"^.*node-b\s+: ok=\d{2,}", text, re.MULTILINE), "the run did not end"
    return text


def test_the_canary_is_in_the_keys_that_are_used(host: Host, log: str) -> None:
    canary = WHERE.canary.read_text()
    if host.check_output("hostname") == "node-a":
        assert host.file(molecule.HOST_KEY).content_string.startswith(canary)
    assert Path(WHERE.lab.build, "pki", "ca.key").read_text().startswith(canary)
    assert canary not in log


def test_no_line_of_the_hosts_key_is_in_the_log(host: Host, log: str) -> None:
    lines = key_lines(host.file(molecule.HOST_KEY).content_string)
    assert [line for line in lines if line in log] == []


def test_no_line_of_the_cas_key_is_in_the_log(log: str) -> None:
    lines = key_lines(Path(WHERE.lab.build, "pki", "ca.key").read_text())
    assert [line for line in lines if line in log] == []
