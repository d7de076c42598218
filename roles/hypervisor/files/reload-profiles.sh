#!/bin/sh
# Load the AppArmor profiles of running VMs anew. Arguments, for tests: the kernel's list of loaded
# profiles (apparmor(7)) and the folder in which libvirt keeps its VMs' profiles.
loaded=${1:-/sys/kernel/security/apparmor/profiles}
folder=${2:-/etc/apparmor.d/libvirt}
[ -r "$loaded" ] || exit 0
failed=0
names=$(sed -n 's/^\(libvirt-[0-9a-f-]\{36\}\) (.*$/\1/p' "$loaded")
for name in $names; do
    # A profile without its file is of a VM that has ended meanwhile.
    [ -e "$folder/$name" ] || continue
    apparmor_parser --replace "$folder/$name" || failed=1
done
exit $failed
