#!/bin/sh
# Runs the daemon of Incus in the tree that `tests/guest/fetch incus` has unpacked. It has a mount
# namespace of its own, and sees the machine's /tmp, its /usr as /host, and the folders that are named.
#   incusd.sh TREE FOLDER...
set -eu
if [ "${1:-}" != --inside ]; then exec unshare --mount --propagation private "$0" --inside "$@"; fi
tree=$2
shift 2
# The tree stays as it is.
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
cd /mnt/root
for folder in /proc /sys /dev /tmp "$@"; do
    mkdir -p ".$folder"
    mount --rbind "$folder" ".$folder"
done
mkdir host
mount --bind /usr host
# Idmapped mounts are refused on overlayfs.
for folder in run var/lib/incus var/log; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p run/lock var/log/incus old
echo root:100000:65536000 | tee etc/subuid >etc/subgid
pivot_root . old
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
umount -l /old
exec /usr/libexec/incus/incusd --group root
