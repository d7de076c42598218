#!/bin/sh
# Remove what the role may have created, where it is empty and belongs to no package. `check` only tells.
for path in /etc/apparmor.d/local/abstractions/libvirt-qemu /etc/apparmor.d/local/abstractions \
    /etc/libvirt/hooks/qemu.d /etc/libvirt/hooks; do
    if [ -d "$path" ]; then
        [ -z "$(ls -A "$path")" ] || continue
    else
        [ -e "$path" ] && [ ! -s "$path" ] || continue
    fi
    dpkg-query --search "$path" >/dev/null 2>&1 && continue
    echo "$path"
    [ "$1" = remove ] || continue
    if [ -d "$path" ]; then rmdir "$path"; else rm "$path"; fi
done
