#!/bin/sh
# Is this host's certificate of our CA, of our key, for these names, and good for SECONDS more?
# Arguments: SECONDS NAMES. Exit code 0: yes; 10: no, and the reason on standard output.
cd /etc/kvmft/pki || exit 1
no() { echo "$1"; exit 10; }
[ -s host.pem ] || no "there is none"
openssl verify -CAfile ca.pem host.pem >/dev/null 2>&1 || no "it is not of this CA, or has expired"
openssl x509 -in host.pem -noout -checkend "$1" >/dev/null || no "it expires soon"
[ "$(openssl x509 -in host.pem -noout -pubkey)" = "$(openssl pkey -in host.key -pubout)" ] ||
    no "it is of another key"
names=$(openssl x509 -in host.pem -noout -ext subjectAltName | tail -n 1 | sed 's/^ *//')
[ "$names" = "$2" ] || no "it is for $names"
