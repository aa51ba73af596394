//! `/proc/swaps`: the container's swap as one virtual area.
//!
//! The machine's swap areas are not listed: their names and usage are not the container's. Layout
//! of `swap_show` in `mm/swapfile.c`.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/swaps`.
pub static SWAPS: OverlayFile = OverlayFile::new("proc/swaps", StatSet::MEMORY, render);

fn render(view: &View, out: &mut Text) {
    out.put("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority").newline();
    // The same rounding as SwapTotal and SwapFree of /proc/meminfo, so that both agree.
    let total = view.swap.total >> 10;
    if total == 0 {
        return;
    }
    let used = total.saturating_sub(view.swap.free >> 10);
    out.put("none").pad_to(40).put("virtual\t\t");
    column(total, out);
    column(used, out);
    out.byte(b'0').newline();
}

/// Writes a number and tabs up to the next heading.
fn column(kib: u64, out: &mut Text) {
    out.dec(kib).put(if kib < 10_000_000 { "\t\t" } else { "\t" });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn without_swap_there_is_only_the_heading() {
        let mut view = fixture::view();
        view.swap = ambit_sysinfo::view::Swap::default();
        let kernel = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert_eq!(fixture::render(&SWAPS, &view), kernel);
    }

    #[test]
    fn one_area_in_the_kernels_columns() {
        let mut view = fixture::view();
        view.swap.total = 16 << 30;
        view.swap.free = (16 << 30) - (3 << 20);
        let text = fixture::render(&SWAPS, &view);
        let line = text.lines().nth(1).unwrap();
        assert_eq!(line, format!("none{}virtual\t\t16777216\t3072\t\t0", " ".repeat(36)));
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["none", "virtual", "16777216", "3072", "0"]);
    }
}
