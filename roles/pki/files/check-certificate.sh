#!/bin/sh
# Is this host's certificate of the CA that signs, of our key, for these names, and good for SECONDS more?
# Arguments: FOLDER SECONDS NAMES. Exit code 0: yes; 10: no, and the reason on standard output.
no() { echo "$1"; exit 10; }
cd "$1" 2>/dev/null || no "there is none"
[ -s host.pem ] || no "there is none"
[ -s host.key ] || no "there is none"
# The first certificate in ca.pem is that of the CA that signs; others are trusted besides.
openssl x509 -in ca.pem 2>/dev/null | openssl verify -CAfile /dev/stdin host.pem >/dev/null 2>&1 ||
    no "it is not of this CA, or has expired"
openssl x509 -in host.pem -noout -checkend "$2" >/dev/null || no "it expires soon"
[ "$(openssl x509 -in host.pem -noout -pubkey)" = "$(openssl pkey -in host.key -pubout)" ] ||
    no "it is of another key"
names=$(openssl x509 -in host.pem -noout -ext subjectAltName | tail -n 1 | sed 's/^ *//')
[ "$names" = "$3" ] || no "it is for $names"
