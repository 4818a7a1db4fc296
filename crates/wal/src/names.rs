//! Object names. A number is written as its 64 bits in reverse, so that consecutive objects fall into different
//! key ranges of the store; listing order is therefore not log order.

/// `wal/{name}.arrow`.
pub(crate) const ENTRY_SUFFIX: &str = ".arrow";
/// `manifest/{name}.binpb`.
pub(crate) const MANIFEST_SUFFIX: &str = ".binpb";

/// The file name of number `n`.
pub(crate) fn format(n: u64, suffix: &str) -> String {
    format!("{:064b}{suffix}", n.reverse_bits())
}

/// The number behind a file name; `None` if it is not one of ours.
pub(crate) fn parse(name: &str, suffix: &str) -> Option<u64> {
    let bits = name.strip_suffix(suffix)?;
    let well_formed = bits.len() == 64 && bits.bytes().all(|b| b == b'0' || b == b'1');
    well_formed.then(|| u64::from_str_radix(bits, 2).ok().map(u64::reverse_bits))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_is_a_one_and_sixty_three_zeros() {
        assert_eq!(format(1, ENTRY_SUFFIX), format!("1{}.arrow", "0".repeat(63)));
    }

    #[test]
    fn foreign_names_are_not_numbers() {
        for name in ["", ".arrow", "1.arrow", "version_hint.json", &format!("+{}.arrow", "1".repeat(63))] {
            assert_eq!(parse(name, ENTRY_SUFFIX), None, "{name}");
        }
        assert_eq!(parse(&format(1, MANIFEST_SUFFIX), ENTRY_SUFFIX), None);
    }

    proptest! {
        #[test]
        fn every_number_comes_back(n: u64) {
            prop_assert_eq!(parse(&format(n, ENTRY_SUFFIX), ENTRY_SUFFIX), Some(n));
        }
    }
}
