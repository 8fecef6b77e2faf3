//! What the demo serves: files of a fixed pattern, so that the client can check every byte without a copy of them.
//! Used by the demo's servers (which read the files) and clients (which know the pattern).

use std::fs;
use std::io;
use std::path::Path;

/// One file of the demo.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Name in the document root.
    pub name: &'static str,
    /// Its size in bytes.
    pub bytes: usize,
}

/// A page as small as an API's answer.
pub const SMALL: Item = Item { name: "small.bin", bytes: 512 };
/// A picture.
pub const MEDIUM: Item = Item { name: "medium.bin", bytes: 100_000 };
/// A download.
pub const LARGE: Item = Item { name: "large.bin", bytes: 64 << 20 };

/// All of them.
pub const ITEMS: [Item; 3] = [SMALL, MEDIUM, LARGE];

/// The byte at `position` of every file: the high bits of a multiplication, so that shifted or repeated blocks differ.
pub fn byte_at(position: usize) -> u8 {
    ((position as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// Writes the files into `root`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(root: &Path) -> io::Result<()> {
    for item in ITEMS {
        let bytes: Vec<u8> = (0..item.bytes).map(byte_at).collect();
        fs::write(root.join(item.name), bytes)?;
    }
    Ok(())
}

/// The first position at which `bytes` is not what [`write()`] wrote.
pub fn first_wrong(item: Item, bytes: &[u8]) -> Option<usize> {
    if bytes.len() != item.bytes {
        return Some(bytes.len().min(item.bytes));
    }
    bytes.iter().enumerate().position(|(position, byte)| *byte != byte_at(position))
}

#[cfg(test)]
mod tests {
    use super::{SMALL, byte_at, first_wrong};

    #[test]
    fn wrong_bytes_and_lengths_are_found() {
        let mut bytes: Vec<u8> = (0..SMALL.bytes).map(byte_at).collect();
        assert_eq!(first_wrong(SMALL, &bytes), None);
        assert_eq!(first_wrong(SMALL, &bytes[..100]), Some(100));
        bytes[7] ^= 1;
        assert_eq!(first_wrong(SMALL, &bytes), Some(7));
        bytes.push(0);
        assert_eq!(first_wrong(SMALL, &bytes), Some(SMALL.bytes));
    }
}
