//! The entries of a directory for a caller: those of the fixed tree, and the members of families.
//!
//! Nothing is cached between requests: a node id determines the entry, and each request checks anew
//! whether the caller may see it. A member must never be visible to a caller whose view does not
//! have it. Start reading at
//! [`DirectoryEntry`].

use std::borrow::Cow;

use ambit_sysinfo::View;
use fuser::Errno;

use crate::families::{self, Member, Shape};
use crate::service::Service;
use crate::text::Text;
use crate::tree::{NodeKind, TreeEntry};

/// One entry of a listing.
#[derive(Debug)]
pub(crate) struct DirectoryEntry<'t> {
    /// Offset of the next request. It depends on the entry and not on its position, so that the
    /// list may change between two requests.
    pub(crate) next: u64,
    pub(crate) entry: TreeEntry<'t>,
    pub(crate) name: Cow<'static, str>,
}

/// Offsets of members; fixed entries have small ones.
const FIRST_MEMBER: u64 = 1 << 32;

impl Service {
    /// Returns the entry of a node id if the thread may see it.
    pub(crate) fn entry(&self, id: u64, thread: u32) -> Result<TreeEntry<'_>, Errno> {
        if let Some(node) = self.tree.node(id) {
            return Ok(TreeEntry::Fixed(node));
        }
        let member = Member::of_id(id).ok_or(Errno::ENOENT)?;
        shown(member, &*self.view(thread, member.family.needs())?).ok_or(Errno::ENOENT)
    }

    /// Returns the entry of this name in a directory, if the thread may see it.
    pub(crate) fn child(
        &self,
        directory: u64,
        name: &[u8],
        thread: u32,
    ) -> Result<TreeEntry<'_>, Errno> {
        if let Some(node) = self.tree.child(directory, name) {
            return Ok(TreeEntry::Fixed(node));
        }
        let found = match self.tree.node(directory).map(|node| families::at(node.path)) {
            Some(Some(family)) => {
                let view = self.view(thread, family.needs())?;
                Member::named(family, &view, name).and_then(|member| shown(member, &view))
            }
            Some(None) => None,
            None => match self.entry(directory, thread)? {
                TreeEntry::Member(above, Shape::Directory) => {
                    let view = self.view(thread, above.family.needs())?;
                    above.find(&view, name).and_then(|member| shown(member, &view))
                }
                _ => None,
            },
        };
        found.ok_or(Errno::ENOENT)
    }

    /// Lists `.`, `..` and the entries of a directory for a thread, from an offset on. ENOTDIR if
    /// it is no directory.
    pub(crate) fn list(
        &self,
        directory: u64,
        offset: u64,
        thread: u32,
    ) -> Result<Vec<DirectoryEntry<'_>>, Errno> {
        let this = self.entry(directory, thread)?;
        let (above, fixed, members, view) = match this {
            TreeEntry::Fixed(node) => {
                let NodeKind::Directory(_) = node.kind else { return Err(Errno::ENOTDIR) };
                let above = self.tree.node(node.parent).map(TreeEntry::Fixed);
                let fixed: Vec<_> = self.tree.children(directory).into_iter().flatten().collect();
                match families::at(node.path) {
                    Some(family) => {
                        let view = self.view(thread, family.needs())?;
                        (above, fixed, Member::all(family, &view).collect(), Some(view))
                    }
                    None => (above, fixed, Vec::new(), None),
                }
            }
            TreeEntry::Member(member, Shape::Directory) => {
                let view = self.view(thread, member.family.needs())?;
                let above = match member.parent() {
                    Some(parent) => shown(parent, &view),
                    None => self.tree.find_path(member.family.directory()).map(TreeEntry::Fixed),
                };
                let members = member.members(&view).collect();
                (above, Vec::new(), members, Some(view))
            }
            TreeEntry::Member(..) => return Err(Errno::ENOTDIR),
        };
        let above = above.ok_or(Errno::ENOENT)?;
        let dots = [(this, "."), (above, "..")].into_iter();
        let fixed = dots.chain(fixed.into_iter().map(|node| (TreeEntry::Fixed(node), node.name())));
        let fixed = (1..).zip(fixed);
        let fixed =
            fixed.map(|(next, (entry, name))| DirectoryEntry { next, entry, name: name.into() });
        let members = members.into_iter().filter_map(|member| {
            let view = view.as_deref()?;
            let next = FIRST_MEMBER + u64::from(member.number());
            // No name is rendered of an entry that was listed before.
            if next <= offset {
                return None;
            }
            let mut name = Text::new();
            member.name(view, &mut name);
            let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
            Some(DirectoryEntry { next, entry: shown(member, view)?, name: name.into() })
        });
        Ok(fixed.chain(members).filter(|listed| listed.next > offset).collect())
    }

    /// The target of a link.
    pub(crate) fn target(&self, id: u64, thread: u32) -> Result<Text, Errno> {
        match self.entry(id, thread)? {
            TreeEntry::Member(member, Shape::Link) => {
                let mut target = Text::new();
                member.render(&*self.view(thread, member.family.needs())?, &mut target);
                Ok(target)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

fn shown(member: Member, view: &View) -> Option<TreeEntry<'static>> {
    member.shape(view).map(|shape| TreeEntry::Member(member, shape))
}
