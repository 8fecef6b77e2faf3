//! Files of pseudo-random bytes, and the comparison of what arrived with what was sent.

use super::random::Random;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

/// `len` bytes that depend on `seed` alone.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed.wrapping_add(0x1234_5678_9ABC_DEF1));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes a file of `len` bytes; blocks of it never repeat.
pub fn write(path: &Path, len: u64) {
    const BLOCK: u64 = 1 << 20;
    let mut file = BufWriter::new(File::create(path).expect("make a file to serve"));
    let mut at = 0;
    while at < len {
        let part = BLOCK.min(len - at) as usize;
        file.write_all(&bytes(part, at)).expect("write a file to serve");
        at += part as u64;
    }
    file.flush().expect("write a file to serve");
}

/// Fails unless both files have the same bytes, and names the first that differs.
pub fn assert_same(sent: &Path, arrived: &Path) {
    let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    let (want, got) = (length(sent), length(arrived));
    assert_eq!(want, got, "{} has another length than {}", arrived.display(), sent.display());
    let open = |path: &Path| BufReader::with_capacity(1 << 20, File::open(path).expect("open"));
    let (mut left, mut right) = (open(sent), open(arrived));
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < want {
        let part = one.len().min((want - at) as usize);
        left.read_exact(&mut one[..part]).expect("read what was sent");
        right.read_exact(&mut other[..part]).expect("read what arrived");
        if one[..part] != other[..part] {
            let offset = (0..part).find(|i| one[*i] != other[*i]).unwrap_or(0);
            panic!("{}: byte {} of {want} is wrong", arrived.display(), at + offset as u64);
        }
        at += part as u64;
    }
}
