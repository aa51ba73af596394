# What the tests of the package in a guest share (installed, engines): containers of each engine, and what must hold in them.
# Sourced with $package, the package whose ambit-verify the containers have.
set -u
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
failed=0 passed=0
rootfs=/srv/rootfs

holds() { # holds WHAT COMMAND...
    local what=$1 said; shift
    if said=$("$@" 2>&1); then
        passed=$((passed + 1)); echo "ok      $what"
    else
        failed=$((failed + 1)); echo "FAILED  $what"; printf '%s\n' "$said" | tail -n 12 | sed 's/^/        /'
    fi
}
equal() { [ "$1" = "$2" ] || { echo "'$1', not '$2'"; return 1; }; }
fails() { ! "$@"; }
part() { echo "=== $1 ($(cut -d. -f1 /proc/uptime) s)"; }

# Containers of 256 MiB and one processor of two, each on a copy of one folder with busybox and ambit-verify.
mkdir -p $rootfs/{bin,proc,sys,dev,tmp,etc,run,root,usr,var}
cp /bin/busybox $rootfs/bin/; for name in $(busybox --list); do ln -s busybox "$rootfs/bin/$name" 2>/dev/null; done
dpkg-deb --fsys-tarfile "$package" | tar -x -C $rootfs/bin --strip-components=3 ./usr/bin/ambit-verify
echo 'root:x:0:0::/root:/bin/sh' >$rootfs/etc/passwd

lxc() { # lxc NAME
    cp -a $rootfs "/srv/$1"
    mkdir -p "/var/lib/lxc/$1"
    cat >"/var/lib/lxc/$1/config" <<LXC
lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = $1
lxc.rootfs.path = dir:/srv/$1
lxc.apparmor.profile = unconfined
lxc.net.0.type = empty
lxc.init.cmd = /bin/sleep 1000000
lxc.cgroup2.memory.max = 256M
lxc.cgroup2.cpu.max = 100000 100000
LXC
    lxc-start -n "$1" -l info -o "/var/log/$1.log" && lxc-wait -n "$1" -s RUNNING -t 60
}
podman_() { # podman_ NAME OPTION...
    local name=$1; shift
    cp -a $rootfs "/srv/$name"
    podman run --detach --name "$name" --network none --memory 256m --cpus 1 "$@" --rootfs "/srv/$name" /bin/sleep 1000000
}
docker_() { # docker_ NAME, from the image `base`
    docker run --detach --name "$1" --network none --memory 256m --cpus 1 base /bin/sleep 1000000
}
ctr_() { # ctr_ NAME OPTION...
    local name=$1; shift
    cp -a $rootfs "/srv/$name"
    ctr run --detach "$@" --env PATH=/bin --memory-limit $((256 << 20)) --cpus 1 --rootfs "/srv/$name" "$name" /bin/sleep 1000000
}
incus_() { # incus_ NAME, from the image `base`
    incus launch base "$1" --config limits.memory=256MiB --config limits.cpu.allowance=100ms/100ms </dev/null
}
nspawn() { # nspawn NAME
    cp -a $rootfs "/srv/$1"
    systemd-run --quiet --unit="$1" systemd-nspawn --quiet --machine="$1" --property=MemoryMax=256M --property=CPUQuota=100% \
        --private-network --directory="/srv/$1" /bin/sleep 1000000
    for _ in {1..100}; do [ -z "$(first_process "$1")" ] || return 0; sleep 0.2; done
    journalctl -u "$1" -n 5; return 1
}
# first_process NAME: of the container of that name. The name begins with that of its engine; the others are Podman's.
first_process() {
    case $1 in
        lxc*) lxc-info -n "$1" -p -H ;;
        docker*) docker inspect --format '{{.State.Pid}}' "$1" ;;
        ctr*) ctr task list | awk -v name="$1" '$1 == name { print $2 }' ;;
        incus*) incus query "/1.0/instances/$1/state" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' ;;
        nspawn*) machinectl show -P Leader "$1" 2>/dev/null ;;
        *) podman inspect --format '{{.State.Pid}}' "$1" ;;
    esac
}
# inside NAME COMMAND...
inside() {
    local name=$1; shift
    case $name in
        lxc*) lxc-attach -n "$name" --clear-env -- "$@" ;;
        docker*) docker exec "$name" "$@" ;;
        ctr*) ctr task exec --exec-id "exec$RANDOM" "$name" "$@" ;;
        incus*) incus exec "$name" -- "$@" </dev/null ;;
        nspawn*) enter "$name" "$@" ;;
        *) podman exec "$name" "$@" ;;
    esac
}
# The same without the engine: its filter reports to a daemon that may be gone.
enter() {
    local pid; pid=$(first_process "$1"); shift
    nsenter --target "$pid" --mount --pid --uts --ipc --root --wd "$@"
}
# Everything that programs read in the container agrees with its limits.
is_right() {
    inside "$1" /bin/ambit-verify --memory 256M --cpus 1 >/run/verify 2>&1 || { grep -A2 '✗' /run/verify || cat /run/verify; return 1; }
    local total
    total=$(inside "$1" busybox free -k | awk '/^Mem:/ { print $2 }')
    equal "$total" 262144 && equal "$(inside "$1" nproc)" 1
}
# The same of files alone: a filter is given to a container when it starts.
files_are_right() {
    inside "$1" /bin/ambit-verify --no-calls --memory 256M --cpus 1 >/run/verify 2>&1 || { grep -A2 '✗' /run/verify || cat /run/verify; return 1; }
    equal "$(inside "$1" awk '/^MemTotal/ { print $2 }' /proc/meminfo)" 262144 && equal "$(inside "$1" grep -c ^processor /proc/cpuinfo)" 1
}
sees_the_machine() { equal "$(enter "$1" awk '/^MemTotal/ { print $2 }' /proc/meminfo)" "$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)"; }
# No file of /proc and /sys that programs read fails.
nothing_is_dead() {
    local said
    said=$(enter "$1" sh -c 'for f in /proc/cpuinfo /proc/meminfo /proc/stat /proc/uptime /proc/loadavg /proc/swaps /proc/vmstat \
        /proc/diskstats /sys/devices/system/cpu/online; do cat $f 2>&1 >/dev/null; done') && [ -z "$said" ] || { echo "$said"; return 1; }
}
covers_nothing() {
    enter "$1" cat /proc/self/mountinfo >/run/mounts || { cat /run/mounts; return 1; }
    ! grep fuse.ambit /run/mounts
}
summary() { echo "$1: $passed hold, $failed do not"; exit $((failed > 100 ? 100 : failed)); }
