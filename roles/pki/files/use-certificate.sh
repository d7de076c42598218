#!/bin/sh
# Put host.pem.new, and host.key.new where there is one, into their places. Arguments: FOLDER GROUP, which may
# read the key.
set -eu
cd "$1"
if [ -e host.key.new ]; then
    chgrp "$2" host.key.new
    [ "$2" = root ] || chmod 0640 host.key.new
    mv host.key.new host.key
fi
mv host.pem.new host.pem
