#!/bin/sh
# Make a CA. Arguments: FOLDER NAME DAYS; NAME.key and NAME.pem in FOLDER. The certificate is put in its
# place last: a key without it is of an interrupted run, and is made anew.
set -eu
umask 077
cd "$1"
cat >"$2.cnf" <<TEXT
[req]
distinguished_name = name
prompt = no
[name]
CN = kvmft CA
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
TEXT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -config "$2.cnf" \
    -extensions ca -days "$3" -keyout "$2.key" -out "$2.pem.new"
mv "$2.pem.new" "$2.pem"
rm "$2.cnf"
