#!/bin/sh
# The next CA becomes the one that signs. Argument: FOLDER. ca-next.pem goes last: as long as it is there this
# was interrupted, and is done again from where it was.
set -eu
umask 077
cd "$1"
if [ ! -e ca-old.pem ]; then
    cp ca.pem ca-old.pem.new
    mv ca-old.pem.new ca-old.pem
fi
[ ! -e ca-next.key ] || mv ca-next.key ca.key
cp ca-next.pem ca.pem.new
mv ca.pem.new ca.pem
rm ca-next.pem
