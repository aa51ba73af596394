//! The fixed tree: directories and files of the overlay that every caller sees. Node ids,
//! attributes and listings are derived from [`FILES`]. Entries that differ between callers are in
//! `families/`; their ids are above those of this tree, see [`crate::families`].
//!
//! A node id is a fixed function of the path, so that a successor, perhaps of another version,
//! understands the ids that the kernel has from its predecessor. Ids fit in 32 bits: they are the
//! inode numbers, and `stat` of old 32-bit programs fails with EOVERFLOW for larger ones. Nothing
//! changes after the start. Start reading at [`Tree`].

use std::time::SystemTime;

use ambit_sysinfo::hash::fnv1a;
use fuser::{FileAttr, FileType, INodeNo};

use crate::families::{self, FAMILIES, Member, Shape};
use crate::files::FILES;
use crate::overlay::{OverlayFile, PAGE, WORLD_READABLE};

/// The root directory.
pub const ROOT: u64 = INodeNo::ROOT.0;

/// The mount point of the pressure files, below the root of the overlay.
pub const PRESSURE: &str = "proc/pressure";

/// The mount point of the files on lease, below the root. It is not listed.
pub const LEASES: &str = ".leases";

/// The id of the node at a path below the root; the empty path is the root itself.
pub fn node_id(path: &str) -> u64 {
    if path.is_empty() {
        return ROOT;
    }
    // FNV-1a, folded to 32 bits.
    let hash = fnv1a(path.as_bytes());
    (hash >> 32) ^ (hash & 0xFFFF_FFFF)
}

/// A directory or a file.
#[derive(Debug)]
pub struct Node {
    /// Its id and inode number.
    pub id: u64,
    /// The id of its directory; the root is its own parent.
    pub parent: u64,
    /// Its path below the root.
    pub path: &'static str,
    /// Directory or file.
    pub kind: NodeKind,
}

/// The kind of a node.
#[derive(Debug)]
pub enum NodeKind {
    /// A directory with the ids of its entries, in the order of [`FILES`].
    Directory(Vec<u64>),
    /// A file.
    File(&'static OverlayFile),
}

impl Node {
    /// The last component of the path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('/').map_or(self.path, |(_, name)| name)
    }

    /// The type that listings and attributes show.
    pub fn file_type(&self) -> FileType {
        match self.kind {
            NodeKind::Directory(_) => FileType::Directory,
            NodeKind::File(_) => FileType::RegularFile,
        }
    }
}

/// All nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    time: SystemTime,
}

impl Default for Tree {
    /// The tree of [`FILES`].
    fn default() -> Self {
        let root = Node { id: ROOT, parent: ROOT, path: "", kind: NodeKind::Directory(Vec::new()) };
        let mut tree = Self { nodes: vec![root], time: SystemTime::now() };
        for file in FILES {
            let path = file.path;
            let parent = tree.add_above(path);
            tree.add(parent, path, NodeKind::File(file));
        }
        for family in FAMILIES {
            let path = family.directory();
            let parent = tree.add_above(path);
            tree.add(parent, path, NodeKind::Directory(Vec::new()));
        }
        let leases = node_id(LEASES);
        if let Err(place) = tree.position(leases) {
            let kind = NodeKind::Directory(Vec::new());
            tree.nodes.insert(place, Node { id: leases, parent: ROOT, path: LEASES, kind });
        }
        tree
    }
}

impl Tree {
    /// Adds the directories above a path, and returns the id of the nearest.
    fn add_above(&mut self, path: &'static str) -> u64 {
        path.match_indices('/').fold(ROOT, |parent, (slash, _)| {
            self.add(parent, &path[..slash], NodeKind::Directory(Vec::new()))
        })
    }

    /// Adds a node unless it is there, and returns its id.
    fn add(&mut self, parent: u64, path: &'static str, kind: NodeKind) -> u64 {
        let id = node_id(path);
        if let Err(place) = self.position(id) {
            self.nodes.insert(place, Node { id, parent, path, kind });
            if let Ok(directory) = self.position(parent)
                && let NodeKind::Directory(children) = &mut self.nodes[directory].kind
            {
                children.push(id);
            }
        }
        id
    }

    fn position(&self, id: u64) -> Result<usize, usize> {
        self.nodes.binary_search_by_key(&id, |node| node.id)
    }

    /// The node with this id.
    pub fn node(&self, id: u64) -> Option<&Node> {
        self.position(id).ok().map(|place| &self.nodes[place])
    }

    /// The node at this path below the root.
    pub fn find_path(&self, path: &str) -> Option<&Node> {
        self.node(node_id(path))
    }

    /// Returns all nodes, in no particular order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the entry of this name in a directory.
    pub fn child(&self, directory: u64, name: &[u8]) -> Option<&Node> {
        if directory == ROOT && name == LEASES.as_bytes() {
            return self.find_path(LEASES);
        }
        self.children(directory)?.find(|node| node.name().as_bytes() == name)
    }

    /// Iterates over the entries of a directory; `None` if it is none.
    pub fn children(&self, directory: u64) -> Option<impl Iterator<Item = &Node>> {
        match &self.node(directory)?.kind {
            NodeKind::Directory(children) => Some(children.iter().filter_map(|&id| self.node(id))),
            NodeKind::File(_) => None,
        }
    }

    /// Returns the attributes of a node, which are the same for every caller.
    pub fn attributes(&self, node: &Node) -> FileAttr {
        self.attributes_of(TreeEntry::Fixed(node))
    }

    /// Returns the attributes of an entry: owned by root, read-only, and files have the size of a
    /// page, as in `/sys`. The kernel's files in `/proc` have size 0, but since Linux 6.5
    /// sendfile(2) and splice(2) take a FUSE file of that size as empty, and busybox `cat` uses
    /// them.
    pub(crate) fn attributes_of(&self, entry: TreeEntry<'_>) -> FileAttr {
        let kind = entry.file_type();
        let (perm, size) = match kind {
            FileType::Directory => (0o555, 0),
            FileType::Symlink => (0o777, 0),
            _ => (entry.mode(), PAGE as u64),
        };
        file_attributes(entry.id(), kind, perm, size, self.links(entry), self.time)
    }

    /// Returns the link count. 1 means "not counted": the number of entries that a caller sees in
    /// the directory of a family, or of a member, differs between callers.
    fn links(&self, entry: TreeEntry<'_>) -> u32 {
        match entry {
            TreeEntry::Fixed(Node { kind: NodeKind::Directory(children), path, .. })
                if families::at(path).is_none() =>
            {
                let children = children.iter().filter_map(|&id| self.node(id));
                let directories =
                    children.filter(|child| matches!(child.kind, NodeKind::Directory(_))).count();
                2 + u32::try_from(directories).unwrap_or(0)
            }
            _ => 1,
        }
    }
}

/// Makes the attributes of something of root's.
pub(crate) fn file_attributes(
    id: u64,
    kind: FileType,
    perm: u16,
    size: u64,
    nlink: u32,
    time: SystemTime,
) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A file, directory or link of the overlay.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TreeEntry<'t> {
    /// A directory or file that every caller sees.
    Fixed(&'t Node),
    /// A member of a family that this caller is shown.
    Member(Member, Shape),
}

impl TreeEntry<'_> {
    /// Its node id.
    pub(crate) fn id(&self) -> u64 {
        match self {
            Self::Fixed(node) => node.id,
            Self::Member(member, _) => member.id(),
        }
    }

    /// The type that listings and attributes show.
    pub(crate) fn file_type(&self) -> FileType {
        match self {
            Self::Fixed(node) => node.file_type(),
            Self::Member(_, Shape::Directory) => FileType::Directory,
            Self::Member(_, Shape::File) => FileType::RegularFile,
            Self::Member(_, Shape::Link) => FileType::Symlink,
        }
    }

    /// The permissions of a file.
    pub(crate) fn mode(&self) -> u16 {
        match self {
            Self::Fixed(Node { kind: NodeKind::File(file), .. }) => file.mode,
            _ => WORLD_READABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::families::FIRST_ID;

    #[test]
    fn ids_are_unique_and_fixed() {
        let tree = Tree::default();
        let ids: HashSet<_> = tree.nodes().iter().map(|node| node.id).collect();
        assert_eq!(ids.len(), tree.nodes().len());
        let paths: HashSet<_> = tree.nodes().iter().map(|node| node.path).collect();
        assert_eq!(paths.len(), tree.nodes().len());
        assert!(tree.nodes().iter().all(|node| node.id > 0 && node.id < FIRST_ID));
        // The kernel remembers ids across takeovers: these may never change.
        assert_eq!(node_id(""), 1);
        assert_eq!(node_id("proc/meminfo"), 0x48BF_E409);
        assert_eq!(node_id("sys/devices/system/cpu/online"), 0x2043_15FF);
    }

    #[test]
    fn directories_list_in_the_order_of_the_files() {
        let tree = Tree::default();
        let names = |path: &str| -> Vec<_> {
            tree.children(node_id(path)).unwrap().map(Node::name).collect()
        };
        assert_eq!(names(""), ["proc", "sys"]);
        let mut expected: Vec<_> = FILES
            .iter()
            .filter_map(|file| file.path.strip_prefix("proc/")?.split('/').next())
            .collect();
        expected.dedup();
        assert_eq!(names("proc"), expected);
        assert_eq!(names("sys"), ["devices"]);
    }

    #[test]
    fn everything_is_readable_and_files_have_a_size() {
        let tree = Tree::default();
        let of = |path: &str| tree.attributes(tree.find_path(path).unwrap());
        assert_eq!((of("proc/meminfo").perm, of("proc/meminfo").size), (0o444, 4096));
        assert_eq!(of("sys/devices/system/cpu/online").size, 4096);
        assert_eq!((of("").perm, of("").nlink), (0o555, 4));
        assert_eq!(of("sys/devices/system/cpu").nlink, 1, "each caller sees its own number");
    }
}
