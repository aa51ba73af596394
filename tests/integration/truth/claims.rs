//! What a program says, as numbers: which quantity, which value, and how coarse its print is.
//! Parsers give `None` for text they do not know; that is a failure of the reader's row.

/// What programs report. Memory in bytes, times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantity {
    MemoryTotal,
    MemoryFree,
    MemoryAvailable,
    SwapTotal,
    SwapFree,
    /// Processors that are online.
    Online,
    /// Processors that there could be: always the machine's.
    Configured,
    /// Processors that a thread may run on.
    Allowed,
    Uptime,
    /// Of the kernel's own clock, CLOCK_BOOTTIME.
    Clock,
    /// The load average over one minute.
    Load,
    /// Seconds since the epoch.
    BootTime,
    /// When the container's first process started, in seconds since the epoch.
    Started,
}

/// One number that a program said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Claim {
    pub(super) quantity: Quantity,
    pub(super) value: f64,
    /// What its last digit is worth.
    pub(super) unit: f64,
}

pub(super) const KIB: f64 = 1024.0;
pub(super) const MIB: f64 = 1024.0 * KIB;

/// Collects the claims of one program.
#[derive(Debug, Default)]
pub(super) struct Claims(Vec<Claim>);

impl Claims {
    pub(super) fn say(mut self, quantity: Quantity, value: f64, unit: f64) -> Self {
        self.0.push(Claim { quantity, value, unit });
        self
    }

    /// Bytes, from a number in these units.
    pub(super) fn size(self, quantity: Quantity, value: f64, unit: f64) -> Self {
        self.say(quantity, value * unit, unit)
    }

    /// Something that is counted.
    pub(super) fn count(self, quantity: Quantity, value: f64) -> Self {
        self.say(quantity, value, 0.0)
    }

    /// An average as programs print it, with two digits.
    pub(super) fn load(self, value: f64) -> Self {
        self.say(Quantity::Load, value, 0.011)
    }

    pub(super) fn done(self) -> Option<Vec<Claim>> {
        (!self.0.is_empty()).then_some(self.0)
    }
}

/// The number that a text begins with, blanks skipped.
pub(super) fn leading(text: &str) -> Option<f64> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text[..end].trim_end_matches('.').parse().ok()
}

/// The number behind a mark.
pub(super) fn after(text: &str, mark: &str) -> Option<f64> {
    leading(text.split_once(mark)?.1)
}

/// The number in front of a mark.
pub(super) fn before(text: &str, mark: &str) -> Option<f64> {
    let text = text.split_once(mark)?.0.trim_end();
    let start = text.rfind(|c: char| !c.is_ascii_digit() && c != '.').map_or(0, |at| at + 1);
    text[start..].parse().ok()
}

/// The value of `key=value`.
pub(super) fn value(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).and_then(leading)
}

/// The line that begins so, without its beginning.
pub(super) fn line<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim_start().strip_prefix(start))
}

/// A size with its unit, such as `1.92G` or `512MB`, in bytes, and what its last digit is worth.
pub(super) fn size(text: &str) -> Option<(f64, f64)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let scale = match text[digits..].chars().next() {
        Some('K') => KIB,
        Some('M') => MIB,
        Some('G') => 1024.0 * MIB,
        Some('T') => 1024.0 * 1024.0 * MIB,
        _ => 1.0,
    };
    let decimals = text[..digits].split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let unit = scale / 10f64.powi(i32::try_from(decimals).ok()?);
    Some((text[..digits].parse::<f64>().ok()? * scale, unit))
}

/// Seconds in `up 5 min,`, `up  1:02,` or `up 1 day, 1:02,`, as `uptime` and `top` print it.
pub(super) fn up(text: &str) -> Option<f64> {
    let mut rest = text.split_once(" up ")?.1.trim_start();
    let mut seconds = 0.0;
    if let Some((days, behind)) = rest.split_once(" day") {
        seconds += leading(days)? * 86400.0;
        rest = behind.trim_start_matches(['s', ',', ' ']);
    }
    let first = rest.split(',').next()?;
    seconds += match first.split_once(':') {
        Some((hours, minutes)) => leading(hours)? * 3600.0 + leading(minutes)? * 60.0,
        None => leading(first)? * 60.0,
    };
    Some(seconds)
}

#[test]
fn printed_numbers_are_parsed() {
    assert_eq!(leading("  12.50, 3"), Some(12.5));
    assert_eq!(after("KiB Mem :   524288 total", "Mem :"), Some(524_288.0));
    assert_eq!(before("  77 K total memory", " K total memory"), Some(77.0));
    assert_eq!(size("1.50G").map(|(bytes, _)| bytes), Some(1536.0 * MIB));
    assert_eq!(size("512M"), Some((512.0 * MIB, MIB)));
    assert_eq!(up(" 08:22:10 up 0 min,  0 user"), Some(0.0));
    assert_eq!(up(" 08:22:10 up 2 days,  1:05,  0 user"), Some(176_700.0));
}
