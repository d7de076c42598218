#!/bin/sh
# Print a line for each certificate that ends within DAYS. Arguments: FOLDER DAYS.
cd "$1" 2>/dev/null || exit 0
for name in host ca; do
    [ -s "$name.pem" ] || continue
    openssl x509 -in "$name.pem" -noout -checkend $(($2 * 86400)) >/dev/null && continue
    echo "the $name certificate ends on $(openssl x509 -in "$name.pem" -noout -enddate | cut -d= -f2)"
done
exit 0
