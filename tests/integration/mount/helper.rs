//! Mounted by a helper.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Loop, MIB, SHIFTED, Stage, helpers, tool};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{cgroup, command, machine, sandbox};

#[test]
fn a_helper_serves_as_the_caller_and_ends_with_the_mount() {
    let stage = Stage::new(SHIFTED);
    let script = "mount -t squashfs.image /run/i/squashfs m && cat m/hello
         grep -o 'nodev.*fuse.squashfs [^ ]*' /proc/self/mountinfo
         p=$(pgrep -x squashfuse); ps -o ppid=,uid= $p
         grep -E '^(Seccomp|CapBnd):' /proc/$p/status | tr -d '\\t'; grep CapBnd /proc/self/status | tr -d '\\t'
         for n in mnt pid net ipc uts cgroup user; do cmp /proc/$p/ns/$n /proc/self/ns/$n 2>/dev/null
             [ $(readlink /proc/$p/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo other $n; done
         [ \"$(cat /proc/$p/cgroup)\" = \"$(cat /proc/self/cgroup)\" ] && echo same groups
         umount m; for i in 1 2 3 4 5 6 7 8 9; do pgrep -x squashfuse >/dev/null || break; sleep .2; done
         pgrep -x squashfuse || echo ended";
    let text = stage.run(&[], script).ok();
    assert!(text.starts_with("hello\nnodev"), "{text}");
    assert!(text.contains("fuse.squashfs /run/i/squashfs"), "{text}");
    assert!(text.contains("\nSeccomp:2\n"), "{text}");
    let bounds: Vec<_> = text.lines().filter(|line| line.starts_with("CapBnd:")).collect();
    assert!(
        bounds.len() == 2 && bounds[0] == bounds[1],
        "no capability beyond the caller's: {text}"
    );
    let parent = text.lines().any(|line| line.split_whitespace().eq(["1", "0"]));
    assert!(parent, "a child of init, root: {text}");
    // A helper in the mount namespace would keep it, and its own mount.
    let others: Vec<_> = text.lines().filter(|line| line.starts_with("other")).collect();
    assert!(others == ["other mnt"] && text.contains("same groups\nended\n"), "{text}");
    stage.leaves_nothing();
}

#[test]
fn a_helper_that_mounts_by_itself_survives_the_daemon() {
    let lines = "mount.enabled = true\nmount.fuse = { ext4 = \"fuse2fs\" }\n";
    let stage = Stage::new(lines);
    let script = "mount -t ext4.image /run/i/ext4 m || exit 1; echo first >m/file; echo mounted
         while [ ! -e /run/i/go ]; do sleep .1; done
         cat m/file; echo second >>m/file; grep -o 'fuse.ext4' /proc/self/mountinfo; umount m
         for i in 1 2 3 4 5 6 7 8 9; do pgrep -x fuse2fs >/dev/null || break; sleep .2; done";
    let bind = format!("{}:/run/i", stage.folder.path().display());
    let args = ["--intercept", "mount", "--bind", &bind, "--device", "/dev/fuse"];
    let script = format!("mkdir /tmp/m; cd /tmp; {script}");
    let mut running = command::start(&mut sandbox::command(&stage.daemon, &args, &script));
    running.wait_for("mounted", machine::patience(20));
    let Stage { daemon, folder, mounts } = stage;
    let daemon = Daemon::start_at(daemon.kill());
    fs::write(folder.path().join("go"), "").unwrap();
    let text = running.finish(machine::patience(30)).ok();
    assert!(text.contains("first\nfuse.ext4\n"), "{text}");
    Stage { daemon, folder, mounts }.leaves_nothing();
}

/// A mount of the kernel ends with the last process of the mount namespace. The helpers are one that
/// takes the device and one that calls mount(2).
#[test]
fn a_helper_ends_with_the_mount_namespace() {
    let stage = Stage::new(
        "mount.enabled = true\nmount.fuse = { ext4 = \"fuse2fs\", squashfs = \"squashfuse\" }\n",
    );
    let script = "cp /run/i/ext4 e; cp /run/i/squashfs s; mkdir n
        unshare -m sh -c 'mount --bind n n; for t in squashfs ext4; do
            mount -t $t.image $(echo $t | cut -c1) m && echo $t >>m/file; ls m; done
            sleep 9876 & echo $! >holder; exec sleep .1' 2>/dev/null
        pgrep -x squashfuse >/dev/null && pgrep -x fuse2fs >/dev/null && echo both serve
        kill $(cat holder)
        while pgrep -x squashfuse || pgrep -x fuse2fs; do sleep .1; done >/dev/null
        mount -t ext4.image e m; cat m/file; umount m
        while pgrep -x fuse2fs; do sleep .1; done >/dev/null; e2fsck -fn e >/dev/null 2>&1 && echo clean";
    let text = stage.run(&["--device", "/dev/fuse"], script).ok();
    assert_eq!(text, "hello\nfile\nlost+found\nboth serve\next4\nclean\n");
    stage.leaves_nothing();
}

#[test]
fn a_device_is_mounted_again_as_soon_as_it_was_unmounted() {
    let stage = Stage::new("mount.enabled = true\nmount.fuse = { ext4 = \"fuse2fs\" }\n");
    let device = Loop::of(&stage.image());
    let args = ["--device", "/dev/fuse", "--device", &device.0];
    let script = format!(
        "for i in $(seq 10); do mount -t ext4 {} m && echo $i >>m/file && umount m || exit; done
         mount -t ext4 {0} m && cat m/file && umount m",
        device.0
    );
    let text = stage.run(&args, &script).ok();
    assert_eq!(text.split_whitespace().count(), 10, "{text}");
    // The last helper may still be at it.
    while !helpers().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(device);
    stage.leaves_nothing();
}

#[test]
fn a_helper_of_the_host_serves_where_there_is_none() {
    let lines = "mount.enabled = true\nmount.fuse = { squashfs = \"host:/usr/bin/squashfuse\", \
                 ext4 = \"host:/usr/bin/fuse2fs\" }\n";
    let stage = Stage::new(lines);
    // A root without a single library.
    let script = "mkdir -p r/proc r/m r/dev; cp /mnt/mount_call-static r/call; cp /run/i/squashfs r
        mount --rbind /proc r/proc; touch r/dev/fuse; mount --bind /dev/fuse r/dev/fuse; ln r/squashfs r/-o
        chroot r /call squashfs m squashfs 0; cat r/m/hello; grep -o 'fuse.squashfs [^ ]*' /proc/self/mountinfo
        p=$(grep -l ^/usr/bin/squashfuse /proc/[0-9]*/cmdline | cut -d/ -f3 | head -1)
        for n in mnt pid net ipc uts cgroup user; do
            [ $(readlink /proc/$p/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo other $n; done
        [ \"$(cat /proc/$p/cgroup)\" = \"$(cat /proc/self/cgroup)\" ] && echo same groups
        sh -c \"echo x >>/proc/$p/exe\" 2>/dev/null && echo written
        readlink /proc/$p/exe /proc/$p/fd/* | sort -u | grep -v -e /dev/null -e /dev/fuse -e anon_inode -e memfd
        umount r/m; chroot r /call -o m squashfs 1; cat r/m/hello; umount r/m
        cp /run/i/ext4 r; chroot r /call ext4 m ext4 0; echo deep >r/m/file; umount r/m
        for i in 1 2 3 4 5 6 7 8 9; do grep -q ^/usr/bin/fuse2fs /proc/[0-9]*/cmdline || break; sleep .2; done
        e2fsck -fn r/ext4 >/dev/null 2>&1 && echo clean";
    let text = stage.run(&["--device", "/dev/fuse"], script).ok();
    let expected = "ok\nhello\nfuse.squashfs squashfs\nother mnt\nsame groups\n/tmp/r/squashfs\n\
                    ok\nhello\nok\nclean\n";
    assert_eq!(text, expected);
    stage.leaves_nothing();
}

#[test]
fn a_helper_of_the_host_is_static_or_glibcs() {
    let folder = readable_dir();
    for (name, program) in [("fuse-swarm", "hostile-static"), ("fuse-exit", "hostile")] {
        std::os::unix::fs::symlink(machine::program(program), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("script"), "#!/bin/sh\n").unwrap();
    let place = folder.path().display();
    let stage = Stage::new(&format!(
        "mount.enabled = true\nmount.fuse = {{ ext4 = \"host:{place}/fuse-swarm\", \
         xfs = \"host:{place}/fuse-exit\", btrfs = \"host:{place}/script\", \
         \"fuse.squashfuse\" = \"host:/usr/bin/squashfuse\" }}\n"
    ));
    let script = "for t in ext4 xfs btrfs; do /mnt/mount_call /run/i/ext4 m $t 0; done
        /mnt/mount_call fsopen fuse.squashfuse; /mnt/mount_call /run/i/squashfs m fuse.squashfuse 0
        cat m/hello; grep -o 'fuse.squashfuse .*squashfs ' /proc/self/mountinfo; umount m";
    let expected = "EINVAL\nEIO\nENOEXEC\nENOSYS\nok\nhello\nfuse.squashfuse /run/i/squashfs \n";
    assert_eq!(stage.run(&[], script).ok(), expected);
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("exit status 3") && said.contains("is a script"), "{said}");
}

#[test]
fn helpers_that_hang_or_fail_are_logged_and_killed() {
    let lines = "mount.enabled = true\nmount.deadline = 2\n\
                 mount.fuse = { ext4 = \"/run/i/hang\", xfs = \"/run/i/fail\", btrfs = \"none\" }\n";
    let stage = Stage::new(lines);
    let program = |name: &str, text: &str| {
        let path = stage.folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    program("hang", "setsid sleep 9876 & sleep 9876");
    program("fail", "for i in $(seq 999); do echo words words; done 2>/dev/null; exit 3");
    let script =
        "for t in ext4 xfs btrfs; do /mnt/mount_call /run/i/ext4 m $t 0; done; pgrep sleep";
    let output = stage.run(&[], script);
    assert_eq!(output.stdout, "ETIMEDOUT\nEINVAL\nENODEV\n");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("exit status 3: words words") && said.len() < 20_000, "{said}");
    assert!(said.contains("the helper none is not in the container"), "{said}");
}

/// Writes a program that the container sees in `/run/i`.
fn write_program(stage: &Stage, name: &str, text: &str) {
    let path = stage.folder.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_helper_mounts_on_a_folder_with_files_with_the_attributes_of_the_call() {
    let stage = Stage::new(
        "mount.enabled = true\nmount.fuse = { ext4 = \"fuse2fs\", squashfs = \"squashfuse\" }\n",
    );
    // nosymfollow, strictatime, sync.
    let script = "touch m/there; for t in ext4 squashfs; do
            /mnt/mount_call /run/i/$t /tmp/m $t 0x1000110; ls m
            grep ' /tmp/m ' /proc/self/mountinfo; umount m; done; ls m";
    let text = stage.run(&["--device", "/dev/fuse"], script).ok();
    let lines: Vec<_> = text.lines().filter(|line| line.contains(" /tmp/m ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in &lines {
        assert!(line.contains("nosymfollow") && !line.contains("relatime"), "{text}");
        assert!(line.contains(",sync"), "{text}");
    }
    assert!(text.contains("ok\nlost+found\n") && text.contains("ok\nhello\n"), "{text}");
    assert!(text.ends_with("there\n"), "{text}");
    stage.leaves_nothing();
}

/// On a device both ask for `fuseblk`, which only the host's root may mount.
#[test]
fn a_helper_that_asks_for_fuseblk_mounts_a_device() {
    let stage = Stage::new(
        "mount.enabled = true\nmount.fuse = { ntfs = \"ntfs-3g\", exfat = \"mount.exfat-fuse\" }\n",
    );
    machine::needs(&["mkntfs", "ntfs-3g", "mkfs.exfat", "mount.exfat-fuse"]);
    for (kind, maker, args) in [("ntfs", "mkntfs", &["-qFQ"][..]), ("exfat", "mkfs.exfat", &[])] {
        let image = stage.folder().join(kind);
        fs::File::create(&image).unwrap().set_len(64 * MIB).unwrap();
        tool(maker, args, &[&image]);
        let device = Loop::of(&image);
        let script = format!(
            "for i in 1 2; do /mnt/mount_call {} /tmp/m {kind} 0; echo $i >>m/file; cat m/file
             awk '$2 == \"/tmp/m\" {{print $1, $3}}' /proc/self/mounts; umount m
             while pgrep 'ntfs-3g|exfat' >/dev/null; do sleep .1; done; done",
            device.0
        );
        let text = stage.run(&["--device", "/dev/fuse", "--device", &device.0], &script).ok();
        let mounted = format!("{} fuse.{kind}\n", device.0);
        assert_eq!(text, format!("ok\n1\n{mounted}ok\n1\n2\n{mounted}"));
    }
    stage.leaves_nothing();
}

#[test]
fn a_helper_that_ends_after_its_start_is_a_failed_mount() {
    let stage = Stage::new("mount.enabled = true\nmount.fuse = { ext4 = \"/run/i/ends\" }\n");
    write_program(&stage, "ends", "fuse2fs \"$@\" && pkill -9 -x fuse2fs; echo good-bye; exit 0");
    let script =
        "/mnt/mount_call /run/i/ext4 /tmp/m ext4 0; grep -c ' /tmp/m ' /proc/self/mountinfo
         rm /dev/fuse; /mnt/mount_call /run/i/ext4 /tmp/m ext4 0";
    let output = stage.run(&["--device", "/dev/fuse"], script);
    let answers: Vec<_> = output.stdout.lines().collect();
    assert!(matches!(answers[0], "ENOTCONN" | "ECONNABORTED" | "EIO"), "{output:?}");
    assert_eq!(answers[1..], ["0", "ENODEV"], "{output:?}");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("good-bye"), "{said}");
    assert!(said.contains("needs /dev/fuse in the container"), "{said}");
}

#[test]
fn a_helper_has_the_environment_of_the_caller_and_no_ignored_signals() {
    let stage = Stage::new("mount.enabled = true\nmount.fuse = { ext4 = \"/run/i/shows\" }\n");
    write_program(&stage, "shows", "{ env; tr -d '\\t' </proc/self/status; } >/run/i/env");
    let script = "AWS_KEY=secret https_proxy=http://p LC_ALL=xx LD_PRELOAD= \
         /mnt/mount_call /run/i/ext4 /tmp/m ext4 0; cat /run/i/env";
    let text = stage.run(&[], script).ok();
    for line in
        ["EIO", "AWS_KEY=secret", "https_proxy=http://p", "LC_CTYPE=xx", "SigIgn:0000000000000000"]
    {
        assert!(text.lines().any(|one| one == line), "{line}: {text}");
    }
    stage.leaves_nothing();
}

/// The daemon has some, as by `AmbientCapabilities=` of systemd: execve(2) would keep them.
#[test]
fn helpers_and_workers_have_no_ambient_capabilities() {
    let place = Place::intercepting(
        "mknod = true\nmount.enabled = true\nmount.fuse = { ext4 = \"/run/i/shows\" }\n",
    );
    let mut serve = command::quiet("setpriv");
    serve.args(["--inh-caps=+sys_admin", "--ambient-caps=+sys_admin", machine::AMBIT, "serve"]);
    serve.arg("--config").arg(place.config());
    let daemon = Daemon::start_below(place, &mut serve);
    let folder = readable_dir();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let shows = folder.path().join("shows");
    fs::write(&shows, "#!/bin/sh\ngrep ^CapAmb: /proc/self/status >/run/i/seen\n").unwrap();
    fs::set_permissions(shows, fs::Permissions::from_mode(0o755)).unwrap();
    let ambient = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let row = status.lines().find_map(|line| line.strip_prefix("CapAmb:\t"))?;
        Some((status.starts_with("Name:\tambit-act\n"), row.to_owned()))
    };
    let none = "0000000000000000";
    assert_ne!(ambient(&daemon.pid().to_string()).unwrap().1, none);
    let count = 3000 / machine::slowness();
    let script =
        format!("/mnt/mount_call /run/i/shows /tmp ext4 1; /mnt/node_call loop /tmp/n {count}");
    let bind = format!("{}:/run/i", folder.path().display());
    let args = ["--intercept", "mount,mknod", "--bind", &bind];
    let mut running = command::start(&mut sandbox::command(&daemon, &args, &script));
    // What a worker has at last: it starts with those of the broker.
    let mut worker = None;
    while !running.ended() {
        let pids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
        let mut all = pids.filter_map(|pid| ambient(pid.to_str()?));
        worker = all.find(|(is_worker, _)| *is_worker).or(worker);
    }
    running.finish(machine::patience(20)).ok();
    assert_eq!(worker, Some((true, none.to_owned())));
    let seen = fs::read_to_string(folder.path().join("seen")).unwrap();
    assert_eq!(seen, format!("CapAmb:\t{none}\n"));
    daemon.stop().0.ok();
}

/// A unit that only mounts: what is left in its control group when it has ended is killed.
#[test]
fn a_helper_is_in_the_control_group_of_the_containers_init() {
    let stage = Stage::new(SHIFTED);
    let wait = |file: &str| format!("while [ ! -e /run/i/{file} ]; do sleep .1; done");
    let script = format!(
        "mkdir /tmp/m; cd /tmp; echo ready; {}
         grep -c /unit /proc/self/cgroup; mount -t squashfs.image /run/i/squashfs m; cat m/hello
         grep -c /unit /proc/$(pgrep -x squashfuse)/cgroup; umount m; echo done; {}",
        wait("go"),
        wait("end")
    );
    let bind = format!("{}:/run/i", stage.folder().display());
    let args = ["--intercept", "mount", "--bind", &bind];
    let mut running = command::start(&mut sandbox::command(&stage.daemon, &args, &script));
    running.wait_for("ready", machine::patience(20));
    let hierarchies = cgroup::hierarchies();
    let hierarchy = hierarchies.iter().find(|one| one.has("pids")).unwrap();
    let place = cgroup::find(hierarchy.root(), &format!("run-{}", running.pid()));
    let unit = place.join("unit");
    fs::create_dir(&unit).unwrap();
    let is_init = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    };
    // A process that has ended meanwhile is not moved.
    let move_all = |from: &std::path::Path, to: &std::path::Path| {
        let all = fs::read_to_string(from.join("cgroup.procs")).unwrap();
        for pid in all.lines().filter(|pid| !is_init(pid)) {
            let _ = fs::write(to.join("cgroup.procs"), pid);
        }
    };
    move_all(&place, &unit);
    fs::write(stage.folder().join("go"), "").unwrap();
    running.wait_for("done", machine::patience(20));
    while fs::remove_dir(&unit).is_err() {
        move_all(&unit, &place);
    }
    fs::write(stage.folder().join("end"), "").unwrap();
    assert_eq!(running.finish(machine::patience(20)).stdout, "ready\n1\nhello\n0\ndone\n");
    stage.leaves_nothing();
}
