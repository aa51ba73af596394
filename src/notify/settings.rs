//! What goes with the names of a policy: what may be mounted, which devices may be made.

use super::mounts::MountSettings;

/// Character devices that every container may have: they give access to nothing.
pub const DEVICES: [Device; 7] = [
    Device(1, 3),
    Device(1, 5),
    Device(1, 7),
    Device(1, 8),
    Device(1, 9),
    Device(5, 0),
    Device(5, 1),
];

/// Character devices that no container may make: memory and ports of the machine.
const NEVER: [Device; 3] = [Device(1, 1), Device(1, 2), Device(1, 4)];

/// A device number: major, minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device(pub u32, pub u32);

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').map(|(major, minor)| (major.parse(), minor.parse()));
        match parts {
            Some((Ok(major), Ok(minor))) if NEVER.contains(&Self(major, minor)) => Err(format!(
                "mknod.devices: {text} is the machine's memory or its ports, and gives the whole \
                 machine away: leave it out"
            )),
            Some((Ok(major), Ok(minor))) if (major, minor) != (0, 0) => Ok(Self(major, minor)),
            _ => Err(format!("{text:?} is no character device: use MAJOR:MINOR, such as 10:229")),
        }
    }
}

/// The settings of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What may be mounted.
    pub mount: MountSettings,
    /// The character devices that may be made.
    pub devices: Vec<Device>,
    /// Is a device mounted below `/dev` where the filesystem forbids nodes?
    pub bind: bool,
    /// May device policies of control groups be set by programs?
    pub bpf_devices: bool,
    /// Are calls answered too from user namespaces that a container made itself?
    pub nested: bool,
    /// The highest real-time priority that a container may use; 0 for none.
    pub priority: u32,
    /// The lowest nice value that it may use.
    pub nice: i32,
    /// How many acts of one container may be under way or wait.
    pub acts: usize,
    /// How many filesystems that were mounted for one container may exist at a time.
    pub mounts: usize,
    /// How many calls a second of one container are answered; what is beyond waits.
    pub calls: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mount: MountSettings::default(),
            devices: DEVICES.to_vec(),
            bind: false,
            bpf_devices: false,
            nested: false,
            priority: 0,
            nice: -20,
            acts: 512,
            mounts: 64,
            calls: 100_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_two_numbers() {
        assert_eq!("10:229".parse(), Ok(Device(10, 229)));
        for text in ["10", "a:b", "1:3:5", "", "0:0", "-1:3", "b8:0"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        for text in ["1:1", "1:2", "1:4", "01:+1"] {
            let error = text.parse::<Device>().unwrap_err();
            assert!(error.contains("gives the whole machine away"), "{error}");
        }
    }
}
