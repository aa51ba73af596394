//! `/proc/uptime`: seconds since the container started, and the idle time of its processors.
//!
//! Layout of `fs/proc/uptime.c`: two numbers with two digits after the point, cut, not rounded.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/uptime`.
pub static UPTIME: OverlayFile = OverlayFile::new("proc/uptime", StatSet::TIMES, render);

fn render(view: &View, out: &mut Text) {
    seconds(view.clock.uptime, out);
    out.space();
    seconds(view.clock.idle, out);
    out.newline();
}

fn seconds(nanoseconds: u64, out: &mut Text) {
    out.hundredths(nanoseconds / 1_000_000_000, nanoseconds / 10_000_000 % 100);
}

#[cfg(test)]
mod tests {
    use procfs_core::{FromRead, Uptime as Parsed};

    use super::*;
    use crate::fixture;

    #[test]
    fn shows_the_containers_clocks() {
        let mut view = fixture::view();
        view.clock.uptime = 61_239_999_999;
        view.clock.idle = 120_000_000_000;
        let text = fixture::render(&UPTIME, &view);
        assert_eq!(text, "61.23 120.00\n");
        let parsed = Parsed::from_read(text.as_bytes()).unwrap();
        assert_eq!((parsed.uptime, parsed.idle), (61.23, 120.0));
    }
}
