//! Mounts a filesystem for a process by hand, without any policy: `mount_as PID TYPE SOURCE TARGET
//! WHAT [OPTION…]`, where WHAT is `kernel`, `shift`, or the name of a helper. Needs root.

use std::process::ExitCode;
use std::time::Duration;

use ambit::worker::Caller;
use ambit::worker::mount::{Handler, How, Order, Superblock, Turns, run};
use rustix::fs::{CWD, Mode, OFlags};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [pid, filesystem, source, target, what, options @ ..] = &words[..] else {
        eprintln!("mount_as PID TYPE SOURCE TARGET kernel|shift|HELPER [OPTION…]");
        return ExitCode::from(2);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())
        .expect("there is such a process");
    let read_only = options.iter().any(|option| option == "ro");
    let how = match what.as_str() {
        "kernel" | "shift" => How::Kernel(Superblock {
            parameters: options.iter().map(|option| (option.clone().into(), None)).collect(),
            on_device: true,
            shift: what == "shift",
        }),
        program => How::Helper(Handler {
            program: program.to_owned(),
            options: options.iter().map(|option| option.clone().into()).collect(),
            mount_options: vec!["allow_other".into(), "default_permissions".into()],
        }),
    };
    let order = Order {
        source: Some(source.clone().into()),
        target: target.clone().into(),
        filesystem: filesystem.clone(),
        attributes: 6 | u64::from(read_only),
        read_only,
        how,
        deadline: Duration::from_secs(5),
    };
    let (caller, _) = Caller::pin(std::os::fd::AsFd::as_fd(&proc)).expect("it can be pinned");
    let watches = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC)
        .expect("an inotify instance");
    let turns = Turns::new().expect("memory for turns");
    match run(&order, &caller, std::os::fd::AsFd::as_fd(&watches), &turns) {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{:?}: {failure}", failure.errno);
            ExitCode::FAILURE
        }
    }
}
