"""When a certificate expires, read from its file with the standard library alone.

X.509 (RFC 5280, 4.1): Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version OPTIONAL,
serialNumber, signature, issuer, validity SEQUENCE { notBefore, notAfter }, ... } ... }
"""

from __future__ import annotations

import ssl
from calendar import timegm
from time import strptime

from kvmft.errors import KvmftError

VERSION, UTC_TIME = 0xA0, 0x17


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """The DER element at `at`: its tag, where its content begins and where it ends."""
    tag, length, begin = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(data[begin : begin + size], "big")
        begin += size
    if begin + length > len(data):
        raise ValueError("it ends too early")
    return tag, begin, begin + length


def expiry(path: str) -> float:
    """Unix time (seconds) of the end of the first certificate in the PEM file at `path`.

    KvmftError `certificate_unreadable` when there is none.
    """
    try:
        with open(path, encoding="ascii") as file:
            text = file.read()
        end = text.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
        data = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE-----") : end] + "\n")
        __, at, __ = _element(data, 0)  # Certificate
        __, at, __ = _element(data, at)  # tbsCertificate
        tag, __, end = _element(data, at)
        if tag == VERSION:
            at = end
        for _field in ("serialNumber", "signature", "issuer"):
            __, __, at = _element(data, at)
        __, at, __ = _element(data, at)  # validity
        __, __, at = _element(data, at)  # notBefore
        tag, begin, end = _element(data, at)
        return float(timegm(_time(data[begin:end].decode("ascii"), tag == UTC_TIME)))
    except (OSError, ValueError, IndexError) as error:
        raise KvmftError("certificate_unreadable", f"{path} is no certificate: {error}.",
                         "Run the pki role for this host.") from error  # fmt: skip


def _time(text: str, two_digits: bool) -> tuple[int, ...]:
    if two_digits:  # RFC 5280, 4.1.2.5.1: 50 to 99 are of the 20th century
        text = ("19" if text[:2] >= "50" else "20") + text
    return tuple(strptime(text, "%Y%m%d%H%M%SZ"))
