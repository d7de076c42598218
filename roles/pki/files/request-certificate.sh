#!/bin/sh
# Make this host's key, where there is none or a new one is wanted, and print a request for its certificate.
# Arguments: FOLDER NAME new|same. Nothing of the key is printed.
set -eu
umask 077
cd "$1"
key=host.key
if [ "$3" = new ] || [ ! -s host.key ]; then
    key=host.key.new
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$key" 2>/dev/null
else
    # of a run that was interrupted before its certificate came
    rm -f host.key.new
fi
openssl req -new -sha256 -key "$key" -subj "/CN=$2"
