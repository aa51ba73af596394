//! Memory that processes share by mapping one file.

pub use super::raw::{Lasting, Mapping};

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    type Line = [AtomicU64; 8];

    #[test]
    fn two_mappings_of_a_file_share_their_numbers() {
        let file = memfd_create("mapping", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, Mapping::<Line>::length(1000).unwrap()).unwrap();
        let one = Mapping::<Line>::new(file.as_fd(), 1000).unwrap();
        let other = Mapping::<Line>::new(file.as_fd(), 1000).unwrap();
        one[999][7].store(5, Ordering::Relaxed);
        assert_eq!((other.len(), other[999][7].load(Ordering::Relaxed)), (1000, 5));
    }

    #[test]
    fn a_length_that_does_not_fit_is_an_error() {
        let file = memfd_create("mapping", MemfdFlags::CLOEXEC).unwrap();
        assert!(Mapping::<Line>::new(file.as_fd(), usize::MAX / 2).is_err());
        assert!(Mapping::<Line>::new(file.as_fd(), usize::MAX / 64).is_err());
        assert!(Mapping::<Line>::new(file.as_fd(), 0).is_err());
    }
}
