#!/bin/sh
# Sign the request on standard input with the CA, and print the certificate. Arguments: FOLDER DAYS NAMES.
set -eu
umask 077
extensions=$(mktemp)
trap 'rm -f "$extensions"' EXIT
cat >"$extensions" <<TEXT
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $3
TEXT
# 20 octets at most, and positive (RFC 5280, 4.1.2.2)
openssl x509 -req -sha256 -CA "$1/ca.pem" -CAkey "$1/ca.key" -days "$2" \
    -set_serial "0x1$(openssl rand -hex 15)" -extfile "$extensions"
