#!/bin/sh
# Makes the PostgreSQL guest out of a Debian root file system ($1).
set -e
root="$1"
echo db1 > "$root"/etc/hostname
echo '/dev/vda / ext4 rw,noatime 0 1' > "$root"/etc/fstab
printf '127.0.0.1 localhost db1\n' > "$root"/etc/hosts
cat > "$root"/etc/systemd/network/10-lan.network <<'UNIT'
[Match]
Type=ether
[Network]
Address=10.93.0.50/24
LinkLocalAddressing=no
IPv6AcceptRA=no
UNIT
chroot "$root" systemctl enable --quiet systemd-networkd.service
chroot "$root" systemctl mask --quiet systemd-networkd-wait-online.service apt-daily.timer \
    apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    dpkg-db-backup.timer systemd-timesyncd.service systemd-pstore.service getty@tty1.service \
    systemd-binfmt.service modprobe@drm.service || true
chroot "$root" passwd -d root >/dev/null
printf 'PermitRootLogin yes\nPermitEmptyPasswords yes\nUsePAM no\n' > "$root"/etc/ssh/sshd_config.d/lab.conf
# A long-lived TCP connection of the demo ends here: every line comes back.
cat > "$root"/etc/systemd/system/echo.service <<'UNIT'
[Unit]
Description=TCP echo for the demo
After=network.target
[Service]
ExecStart=/usr/bin/socat TCP-LISTEN:7,fork,reuseaddr,nodelay EXEC:cat
Restart=always
[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl enable --quiet echo.service
conf="$root"/etc/postgresql/15/main
cat >> "$conf"/postgresql.conf <<'CONF'
listen_addresses = '*'
fsync = on
synchronous_commit = on
full_page_writes = on
max_connections = 20
shared_buffers = 32MB
autovacuum_naptime = 10min
jit = off
CONF
echo 'host all all 10.93.0.0/24 trust' >> "$conf"/pg_hba.conf
sed -i 's/peer$/trust/' "$conf"/pg_hba.conf
cat > "$root"/root/init.sql <<'SQL'
CREATE DATABASE demo;
\c demo
CREATE TABLE ledger (seq bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
SQL
chroot "$root" su postgres -c '/usr/lib/postgresql/15/bin/pg_ctl -D /etc/postgresql/15/main -o "-c unix_socket_directories=/tmp -c listen_addresses=" -w start >/dev/null && psql -q -h /tmp -f /dev/stdin && /usr/lib/postgresql/15/bin/pg_ctl -D /etc/postgresql/15/main -m fast -w stop >/dev/null' < "$root"/root/init.sql
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/locale/*
