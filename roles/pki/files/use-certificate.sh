#!/bin/sh
# Put a certificate, and host.key.new where there is one, into their places. Arguments: FOLDER GROUP CERTIFICATE; the
# group may read the key, and the certificate is its text.
set -eu
umask 022
cd "$1"
rm -f host.pem.new
printf '%s\n' "$3" >host.pem.new
if [ -e host.key.new ]; then
    chgrp "$2" host.key.new
    [ "$2" = root ] || chmod 0640 host.key.new
    mv host.key.new host.key
fi
mv host.pem.new host.pem
