# Makes the root tree of a host of its own and then waits for the end of its standard input.
# Started by unshare(1) as PID 1 of new PID, mount, network, UTS, IPC and cgroup namespaces.
# Bash reaps whatever is handed over to PID 1. Arguments: the host's name.
set -euo pipefail
name=$1

# The old /proc still shows the PID that the outside knows us by.
read -r outer_pid _ < /proc/self/stat

hostname "$name"

# All that this host writes goes to a tmpfs over the machine's own tree: another st_dev, and nothing to clean.
# Mounted over /mnt because that exists everywhere; only this mount namespace sees it.
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root

mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp

# A directory of the machine that several hosts see, as they would see shared storage. Not through the overlay: that
# would give each host a copy of its own of whatever it writes to.
if [[ -n $WHIMBREL_TESTBED_SHARED ]]; then
    mkdir -p srv/shared
    mount --bind "$WHIMBREL_TESTBED_SHARED" srv/shared
fi

# The same cgroup hierarchies at the same places, seen from this host's own group.
if [[ $WHIMBREL_TESTBED_CGROUPS == *v1* ]]; then
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
fi
while read -r version place; do
    [[ -n $place ]] || continue
    mkdir -p ".$place"
    if [[ $version == v1 ]]; then
        mount -t cgroup -o freezer cgroup ".$place"
    else
        mount -t cgroup2 cgroup2 ".$place"
    fi
done <<< "$WHIMBREL_TESTBED_CGROUPS"

mkdir -p .old
pivot_root . .old
cd /
umount --lazy /.old
rmdir /.old

# Started again from the new tree, so that nothing of the old one stays in use.
exec /bin/bash -c 'echo "ready $1"; while read -r _; do :; done' host "$outer_pid"
