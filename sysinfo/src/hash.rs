//! Hashes whose values must be the same in every process and release: keys of counter records, node
//! ids, the choice of processors under a quota. FNV-1a and the finalizer of SplitMix64 are
//! implemented here; the standard library's hashers may change with the compiler.
//!
//! Neither resists deliberate collisions: a table keyed by these hashes must stay correct when two
//! keys collide.

/// FNV-1a of 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    fnv1a_words(bytes.iter().map(|&byte| u64::from(byte)))
}

/// FNV-1a with a whole word for each step instead of a byte.
pub fn fnv1a_words(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x100_0000_01b3))
}

/// Returns the `index`-th number of the SplitMix64 sequence of a seed. All its bits depend on all
/// bits of the seed, unlike the low bits of FNV-1a; different indices give different numbers.
pub fn splitmix64(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published test vectors: these numbers must be the same in every release.
    #[test]
    fn hashes_never_change() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(splitmix64(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(0, 1), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(fnv1a_words([1, 2].into_iter()), fnv1a(&[1, 2]));
    }
}
