"""Certificates and CA are replaced under a listening agent: the next connection goes by the new ones."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmft.adapters.ftlog import TlsFiles
from kvmft.agent.config import Config, parse
from kvmft.agent.peers import Peers
from kvmft.errors import KvmftError
from tests.pair.harness import free_port


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def authority(folder: Path, name: str) -> Path:
    """A CA: NAME.key and NAME.pem."""
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
            f"/CN={name}", "-days", "30", "-keyout", folder / f"{name}.key",
            "-out", folder / f"{name}.pem")  # fmt: skip
    return folder / f"{name}.pem"


def issue(ca: Path, files: Path, host: str) -> TlsFiles:
    """A new key, a certificate of `ca` and the CA itself in the folder `files`."""
    files.mkdir(exist_ok=True)
    found = TlsFiles(str(files / "ca.pem"), str(files / "host.pem"), str(files / "host.key"))
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
            f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-keyout", found.key,
            "-out", files / "request")  # fmt: skip
    openssl("x509", "-req", "-in", files / "request", "-CA", ca, "-CAkey", ca.with_suffix(".key"),
            "-CAcreateserial", "-days", "30", "-copy_extensions", "copyall", "-out", found.cert)  # fmt: skip
    Path(found.ca).write_bytes(ca.read_bytes())
    return found


def configuration(host: str, peer: str, tls: TlsFiles, port: int) -> Config:
    where = {"management": "127.0.0.1", "migration": "127.0.0.1"}
    ft = {"node-a": "127.0.0.1", "node-b": "127.0.0.2"}
    return replace(parse({
        "cluster_id": "c" * 32, "host": host, "storage_pool": "/x",
        "addresses": {**where, "ft": ft[host]}, "peers": {peer: {**where, "ft": ft[peer]}},
        "ft_port": port, "tls": {"ca": "/x", "cert": "/x", "key": "/x"}, "arbiter": {"type": "none"},
    }), tls=tls)  # fmt: skip


async def answer(caller: str, op: str, _args: dict[str, Any]) -> Any:
    return {"caller": caller, "op": op}


@pytest.fixture
def port() -> int:
    return free_port()


def test_new_certificates_of_another_ca_count_from_the_next_connection_on(tmp_path: Path, port: int) -> None:
    old, new = authority(tmp_path, "old"), authority(tmp_path, "new")
    a, b = issue(old, tmp_path / "a", "node-a"), issue(old, tmp_path / "b", "node-b")
    listener = Peers(configuration("node-a", "node-b", a, port))
    dialler = Peers(configuration("node-b", "node-a", b, port))

    async def story() -> None:
        server = await listener.listen(answer)
        async with server:
            assert (await dialler.call("node-a", "peer_ping"))["caller"] == "node-b"
            issue(new, tmp_path / "a", "node-a")
            with pytest.raises(KvmftError) as refused:
                await dialler.call("node-a", "peer_ping")
            assert refused.value.code == "peer_certificate_refused"
            issue(new, tmp_path / "b", "node-b")
            assert (await dialler.call("node-a", "peer_ping"))["caller"] == "node-b"
            # In the midst of a replacement the key is of no certificate: what was read last holds.
            Path(a.cert).write_bytes(Path(b.cert).read_bytes())
            assert (await dialler.call("node-a", "peer_ping"))["caller"] == "node-b"

    asyncio.run(story())


def test_trusting_both_cas_lets_hosts_change_one_after_the_other(tmp_path: Path, port: int) -> None:
    old, new = authority(tmp_path, "old"), authority(tmp_path, "new")
    a, b = issue(old, tmp_path / "a", "node-a"), issue(old, tmp_path / "b", "node-b")
    listener = Peers(configuration("node-a", "node-b", a, port))
    dialler = Peers(configuration("node-b", "node-a", b, port))
    both = old.read_bytes() + new.read_bytes()

    async def story() -> None:
        server = await listener.listen(answer)
        async with server:
            for files in (a, b):
                Path(files.ca).write_bytes(both)
                assert await dialler.call("node-a", "peer_ping")
            for name in ("a", "b"):
                issue(new, tmp_path / name, f"node-{name}")
                (tmp_path / name / "ca.pem").write_bytes(both)
                assert await dialler.call("node-a", "peer_ping")
            for files in (a, b):
                Path(files.ca).write_bytes(new.read_bytes())
                assert await dialler.call("node-a", "peer_ping")

    asyncio.run(story())
