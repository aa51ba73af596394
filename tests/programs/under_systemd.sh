#!/bin/bash
# Run ambit as a service of a real systemd, which is PID 1 of namespaces made for it, and do to it what happens to services:
# kills of the keeper, restarts, a stop, a reload, a mistaken configuration. Meanwhile a sandbox looks at everything in a loop.
#   under_systemd.sh AMBIT UNIT PROGRAMS KILLS
# Needs root and pure cgroup v2. Prints what happened; the last line is "ended".
set -euo pipefail
ambit=$1 unit=$2 programs=$3 kills=$4 phase=${5:-outside}
root=/sys/fs/cgroup
case $phase in
outside)
    cgroup=$root${AMBIT_TEST_CGROUP:-}/under-systemd-$$
    dir=$(mktemp -d /tmp/ambit-systemd.XXXXXX); chmod 755 "$dir"
    mkdir "$cgroup"
    trap 'umount -l "$dir/mnt" 2>/dev/null || :; rm -rf "$dir"
          for _ in {1..50}; do find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || :; [ -d "$cgroup" ] || break; sleep 0.1; done' EXIT
    (
        echo "$BASHPID" >"$cgroup/cgroup.procs"
        # Namespaces of a container: systemd then does without devices, consoles and a reboot.
        exec env DIR="$dir" unshare --pid --fork --kill-child --mount --cgroup --uts --propagation private \
            "$0" "$ambit" "$unit" "$programs" "$kills" inside
    ) >"$dir/systemd.log" 2>&1 &
    # Who waits for systemd leaves its group: one with a process in it has no controllers to give to others.
    until [ -e "$dir/mnt" ] || ! kill -0 $!; do sleep 0.05; done
    echo $! >"$root${AMBIT_TEST_CGROUP:-}/cgroup.procs"
    wait $! || { echo "systemd ended with $?:"; tail -n 30 "$dir/systemd.log"; }
    cat "$dir/said"
    ;;
inside)
    mount -t proc proc /proc
    umount -l "$root"; mount -t cgroup2 cgroup2 "$root"
    mount -t tmpfs -o mode=755 run /run
    mkdir -p /run/systemd/system/ambit.service.d "$DIR/mnt" "$DIR/run"
    printf '[daemon]\nruntime_dir = "%s/run"\n[overlay]\nmount = "%s/mnt"\n[intercept]\nmknod = true\n' "$DIR" "$DIR" >"$DIR/ambit.toml"
    cp "$unit" /run/systemd/system/ambit.service
    # As the generator of the package does.
    version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    [ "$version" -lt 254 ] || cp "${unit%/*}/systemd-254.conf" /run/systemd/system/ambit.service.d/
    cat >/run/systemd/system/ambit.service.d/test.conf <<UNIT
[Unit]
DefaultDependencies=no
[Service]
ExecStart=
ExecStart=$ambit serve --config $DIR/ambit.toml
ExecReload=
ExecReload=$ambit reload --config $DIR/ambit.toml
StandardOutput=append:$DIR/ambit.log
StandardError=append:$DIR/ambit.log
UNIT
    cat >/run/systemd/system/scenario.service <<UNIT
[Unit]
DefaultDependencies=no
# As multi-user.target does with a unit that is enabled: systemd discards a stopped unit that no other unit wants, with its store.
Wants=ambit.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
TimeoutStartSec=$((60 + 30 * ${AMBIT_TEST_SLOW:-1}))
Delegate=yes
MemoryAccounting=yes
CPUAccounting=yes
Environment=DIR=$DIR PATH=$PATH AMBIT_TEST_SLOW=${AMBIT_TEST_SLOW:-1}
ExecStart=$0 $ambit $unit $programs $kills scenario
StandardOutput=append:$DIR/said
StandardError=append:$DIR/said
UNIT
    while grep -qx 0 "$root/cgroup.procs"; do sleep 0.05; done
    container=test exec /lib/systemd/systemd --system --unit=scenario.service --show-status=0 --log-target=console
    ;;
scenario)
    answers() { "$ambit" status --json --config "$DIR/ambit.toml" 2>/dev/null || :; }
    main_pid() { answers | sed -n 's/^  "pid": \([0-9]*\),$/\1/p'; }
    # Waits until a daemon with another pid than this one answers.
    another() {
        local n pid
        for ((n = 0; n < 100 * ${AMBIT_TEST_SLOW:-1}; n++)); do
            pid=$(main_pid)
            [ -z "$pid" ] || [ "$pid" = "$1" ] || return 0
            sleep 0.1
        done
        echo "no daemon comes back"; tail -n 30 "$DIR/ambit.log"; exit 1
    }
    systemctl --version | head -1
    systemctl start ambit
    mkdir "$DIR/stop"
    "$ambit" run --config "$DIR/ambit.toml" --memory 64M --intercept sysinfo,mknod --bind "$DIR/stop:/srv:ro" \
        --bind "$programs:/mnt:ro" -- /mnt/survivor /srv/stop 65536 /tmp/node >"$DIR/survivor" 2>&1 &
    survivor=$!
    for ((n = 0; n < 100 * ${AMBIT_TEST_SLOW:-1}; n++)); do
        [ -z "$(answers | sed -n '/"answered": [1-9]/p')" ] || break
        kill -0 "$survivor" || { echo "the sandbox ended:"; cat "$DIR/survivor"; exit 1; }
        sleep 0.1
    done
    for ((kill = 0; kill < kills; kill++)); do
        pid=$(main_pid); kill -KILL "$pid"; another "$pid"; sleep "0.$((RANDOM % 5))"
    done
    echo "killed the keeper $kills times"
    for turn in 1 2; do pid=$(main_pid); systemctl restart ambit; another "$pid"; sleep 0.2; done
    echo "restarted 2 times"
    if [ "$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')" -ge 254 ]; then
        pid=$(main_pid); systemctl stop ambit; sleep 0.5; systemctl start ambit; another "$pid"; sleep 0.2
        echo "stopped and started"
    else
        echo "not stopped: before systemd 254 that loses what was kept"
    fi
    systemctl reload ambit && echo "reloaded"
    sleep 0.2; : >"$DIR/stop/stop"
    wait "$survivor" || echo "the sandbox ended with $?"
    cat "$DIR/survivor"
    echo "mistake = 1" >>"$DIR/ambit.toml"
    # The last good configuration outlives the keeper.
    pid=$(main_pid); systemctl restart ambit; another "$pid"
    echo "restarted with a mistake: $("$ambit" status --config "$DIR/ambit.toml" | grep "file is wrong")"
    # Without anything that was kept it is a first start, which systemd tries by itself.
    "$ambit" stop --release --config "$DIR/ambit.toml"
    sleep 2
    echo "a mistake: $(systemctl show -p ActiveState --value ambit), status $(systemctl show -p ExecMainStatus --value ambit)"
    grep -m1 mistake "$DIR/ambit.log"
    echo ended
    ;;
esac
