//! Families: directories whose entries differ between callers, `cpuN` and `nodeN`.
//!
//! The rest of the tree is fixed; of a family, each caller sees the members that its [`View`] has,
//! and no others exist for it. The kernel's dcache is common to all containers, so no answer about
//! a member may be cached by name: `filesystem.rs` gives such entries a validity of 0.
//!
//! A member is a number of 22 bits whose meaning is up to the family, and its node id is computed
//! from it (`Member::id`): no table is needed, so that a successor understands the ids of its
//! predecessor. To add a family, add a module and a line in [`FAMILIES`].

mod cpus;
mod node_meminfo;
mod nodes;

use std::fmt::{Debug, Write};

use ambit_sysinfo::{CpuSet, StatSet, View};

use crate::text::Text;

/// All families. Their positions are part of node ids: new ones go to the end.
pub static FAMILIES: &[&dyn Family] = &[&cpus::Cpus, &nodes::Nodes];

/// The kind of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A directory of other members.
    Directory,
    /// A file.
    File,
    /// A symbolic link.
    Link,
}

/// A family of directories, with one directory for each object of the machine.
pub trait Family: Sync + Debug {
    /// Returns the directory of the fixed tree that contains the members.
    fn directory(&self) -> &'static str;

    /// The groups of numbers that its members show, or that decide which there are.
    fn needs(&self) -> StatSet;

    /// Returns the kind of a member; `None` if the caller does not see it.
    fn shape(&self, view: &View, member: u32) -> Option<Shape>;

    /// Returns the directory of a member; `None` for [`Self::directory`].
    fn parent(&self, member: u32) -> Option<u32>;

    /// Returns the entries of a directory (`None`: [`Self::directory`]) for the caller, in
    /// ascending order.
    fn members(&self, view: &View, directory: Option<u32>) -> Vec<u32>;

    /// Writes the last component of a member's path.
    fn name(&self, view: &View, member: u32, out: &mut Text);

    /// Writes the content of a file or the target of a link for the caller. Called only for members
    /// that the caller sees.
    fn render(&self, view: &View, member: u32, out: &mut Text);

    /// Returns the entry of this name in a directory, for the caller.
    fn find(&self, view: &View, directory: Option<u32>, name: &[u8]) -> Option<u32>;
}

/// Returns the family in a directory of the fixed tree.
pub(crate) fn at(directory: &str) -> Option<&'static dyn Family> {
    FAMILIES.iter().copied().find(|family| family.directory() == directory)
}

/// One member of one family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) family: &'static dyn Family,
    number: u32,
}

/// The smallest id of a member; ids of the fixed tree are smaller.
pub(crate) const FIRST_ID: u64 = 0xFF00_0000;
const MEMBER_BITS: u32 = 22;

impl Member {
    /// Returns the member of a node id.
    pub(crate) fn of_id(id: u64) -> Option<Self> {
        let id = u32::try_from(id.checked_sub(FIRST_ID)?).ok()?;
        let family = FAMILIES.get((id >> MEMBER_BITS) as usize)?;
        Some(Self { family: *family, number: id & ((1 << MEMBER_BITS) - 1) })
    }

    /// Its node id.
    pub(crate) fn id(self) -> u64 {
        let directory = self.family.directory();
        let place = FAMILIES.iter().position(|family| family.directory() == directory);
        FIRST_ID + ((place.unwrap_or(0) as u64) << MEMBER_BITS) + u64::from(self.number)
    }

    /// Its offset in listings.
    pub(crate) fn number(self) -> u32 {
        self.number
    }

    /// Its kind for this caller.
    pub(crate) fn shape(self, view: &View) -> Option<Shape> {
        self.family.shape(view, self.number)
    }

    /// Its directory; `None` for the directory of its family.
    pub(crate) fn parent(self) -> Option<Self> {
        self.family.parent(self.number).map(|number| Self { number, ..self })
    }

    /// Its entries for this caller.
    pub(crate) fn members(self, view: &View) -> impl Iterator<Item = Self> {
        let members = self.family.members(view, Some(self.number)).into_iter();
        members.map(move |number| Self { number, ..self })
    }

    /// Its entry of this name for this caller.
    pub(crate) fn find(self, view: &View, name: &[u8]) -> Option<Self> {
        let number = self.family.find(view, Some(self.number), name)?;
        Some(Self { number, ..self })
    }

    /// Returns the members in the directory of a family, for this caller.
    pub(crate) fn all(family: &'static dyn Family, view: &View) -> impl Iterator<Item = Self> {
        let members = family.members(view, None).into_iter();
        members.map(move |number| Self { family, number })
    }

    /// Returns the member of this name in the directory of a family, for this caller.
    pub(crate) fn named(family: &'static dyn Family, view: &View, name: &[u8]) -> Option<Self> {
        Some(Self { family, number: family.find(view, None, name)? })
    }

    /// Writes its name.
    pub(crate) fn name(self, view: &View, out: &mut Text) {
        self.family.name(view, self.number, out);
    }

    /// Writes its content or target.
    pub(crate) fn render(self, view: &View, out: &mut Text) {
        self.family.render(view, self.number, out);
    }

    /// Its path below the root of the overlay.
    pub(crate) fn path(self, view: &View) -> String {
        let mut parts = vec![self];
        parts.extend(std::iter::successors(self.parent(), |member| member.parent()));
        let mut path = Text::new();
        path.put(self.family.directory());
        for member in parts.into_iter().rev() {
            path.byte(b'/');
            member.name(view, &mut path);
        }
        String::from_utf8_lossy(path.as_bytes()).into_owned()
    }
}

/// Parses a name such as `cpu12`, without leading zeros, as the kernel prints it.
pub(crate) fn numbered(name: &[u8], prefix: &str) -> Option<u32> {
    let digits = std::str::from_utf8(name.strip_prefix(prefix.as_bytes())?).ok()?;
    let number: u32 = digits.parse().ok()?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    (plain && (digits.len() == 1 || !digits.starts_with('0'))).then_some(number)
}

/// Writes a set as a list, without a newline.
fn list(set: &CpuSet, out: &mut Text) {
    // Writing to a `Text` cannot fail.
    let _ = write!(out, "{set}");
}

/// Writes a set as a mask, without a newline.
fn mask(set: &CpuSet, view: &View, out: &mut Text) {
    let topology = view.topology();
    let digits = match topology.mask_digits {
        0 => topology.cpus.last().map_or(1, |cpu| cpu.number as usize / 4 + 1),
        digits => digits,
    };
    let _ = write!(out, "{}", set.mask(digits));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_members_are_inverse_and_never_change() {
        for family in FAMILIES {
            for number in [0, 1, (1 << MEMBER_BITS) - 1] {
                let member = Member { family: *family, number };
                let id = member.id();
                assert!(id >= FIRST_ID && u32::try_from(id).is_ok());
                let again = Member::of_id(id).unwrap();
                assert_eq!((again.id(), again.number), (id, number));
            }
        }
        assert!(Member::of_id(1).is_none() && Member::of_id(u64::MAX).is_none());
        assert!(Member::of_id(FIRST_ID + ((FAMILIES.len() as u64) << MEMBER_BITS)).is_none());
        // The kernel remembers ids across takeovers.
        let places: Vec<_> = FAMILIES.iter().map(|family| family.directory()).collect();
        assert_eq!(places, ["sys/devices/system/cpu", "sys/devices/system/node"]);
    }

    #[test]
    fn numbers_are_written_as_the_kernel_writes_them() {
        assert_eq!(numbered(b"cpu0", "cpu"), Some(0));
        assert_eq!(numbered(b"cpu12", "cpu"), Some(12));
        for name in ["cpu", "cpu01", "cpu00", "cpu+1", "cpu-1", "cpu1x", "node1", "cpufreq"] {
            assert_eq!(numbered(name.as_bytes(), "cpu"), None, "{name}");
        }
    }
}
