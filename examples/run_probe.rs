//! Probe: `ambit run` with a service that serves a folder and continues every call.
#![allow(missing_docs)]
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambit::run::{RunArgs, Service};
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    run: RunArgs,
}
struct Fake(PathBuf);
impl Service for Fake {
    fn overlay(&self) -> &Path {
        &self.0
    }
    fn deliver(&self, l: OwnedFd, id: &str, pid: i32, names: &[String]) -> anyhow::Result<()> {
        if std::env::var_os("PROBE").is_some() {
            eprintln!("deliver {id} {pid} {names:?}");
        }
        std::thread::spawn(move || {
            while let Ok(req) = libseccomp::ScmpNotifReq::receive(l.as_raw_fd()) {
                let r = libseccomp::ScmpNotifResp::new_continue(
                    req.id,
                    libseccomp::ScmpNotifRespFlags::empty(),
                );
                let _ = r.respond(l.as_raw_fd());
            }
        });
        Ok(())
    }
    fn stop(self: Box<Self>) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
fn main() -> ExitCode {
    let line = Line::parse();
    let files = ["proc/meminfo", "sys/devices/system/cpu/online", "proc/nonexistent"];
    ambit::run::run(line.run, &files, |prepared| {
        if std::env::var_os("PROBE").is_some() {
            eprintln!("{prepared:?}");
        }
        let dir = PathBuf::from("/var/tmp");
        nix::mount::mount(
            Some("probe"),
            &dir,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?;
        for f in files {
            std::fs::create_dir_all(dir.join(f).parent().unwrap())?;
            std::fs::write(
                dir.join(f),
                if f.contains("meminfo") {
                    std::fs::read_to_string("/proc/meminfo")?
                } else {
                    format!("fake {f}\n")
                },
            )?;
        }
        Ok(Box::new(Fake(dir)))
    })
}
