//! Programs whose sockets a preload library does not reach: statically linked ones (Go's above all), those
//! of another C library or processor, and those for which the dynamic loader ignores `LD_PRELOAD`. They run,
//! on the kernel's stack, and `haypile run` says so before it becomes one. Looks at files alone, and says
//! nothing where it is not sure. Called by `run`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::place;

/// Interpreters of interpreters that are followed.
const DEPTH: usize = 4;
/// Most program headers looked at.
const HEADERS_MAX: usize = 64;

/// Kinds of program headers: the loader's name, and notes.
const LOADER: u32 = 3;
const NOTES: u32 = 4;
/// Most bytes of those that are read.
const SEGMENT_MAX: u64 = 4096;

/// Why the library does not reach a program, if it does not.
pub fn obstacle(program: &OsStr) -> Option<String> {
    let path = find(program)?;
    let name = Path::new(program).display();
    through(&path, DEPTH)
        .map(|why| format!("{name} {why}: its sockets stay the kernel's, not Haypile's"))
}

/// The file that would be executed, as execvp(3) finds it.
fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    let places: OsString = std::env::var_os("PATH")?;
    std::env::split_paths(&places).map(|place| place.join(program)).find(|path| path.is_file())
}

fn through(path: &Path, depth: usize) -> Option<String> {
    let file = File::open(path).ok()?;
    let mut start = [0u8; 256];
    let len = (&file).read(&mut start).ok()?;
    if let Some(line) = start[..len].strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let mut words = line.split(|byte| *byte == b' ' || *byte == b'\t');
        let interpreter = words.find(|word| !word.is_empty())?;
        let next = Path::new(OsStr::from_bytes(interpreter));
        return if depth == 0 { None } else { through(next, depth - 1) };
    }
    changes_rights(&file).map(str::to_string).or_else(|| of_elf(&file, &start[..len]))
}

/// Programs that run with other rights than their caller's: the loader takes no orders from those.
fn changes_rights(file: &File) -> Option<&'static str> {
    let facts = file.metadata().ok()?;
    let other_user = facts.mode() & 0o4000 != 0 && facts.uid() != place::effective_user();
    let other_group =
        facts.mode() & 0o2010 == 0o2010 && Some(facts.gid()) != place::effective_group();
    (other_user || other_group).then_some(
        "changes its user or group (set-user-id), and the loader ignores LD_PRELOAD for it",
    )
}

/// What an ELF file says of its loader.
fn of_elf(file: &File, start: &[u8]) -> Option<String> {
    let own = std::env::current_exe().ok().and_then(|path| header(&File::open(path).ok()?));
    let (own_class, own_machine, ..) = own?;
    let (class, machine, offset, size, count) = header_of(start)?;
    if (class, machine) != (own_class, own_machine) {
        return Some("is for another processor or word size than the library".to_string());
    }
    let (mut loader, mut is_go) = (None, false);
    for index in 0..count.min(HEADERS_MAX) {
        let mut entry = [0u8; 56];
        file.read_exact_at(&mut entry, offset + (index * size) as u64).ok()?;
        let kind = u32::from_le_bytes(entry[..4].try_into().ok()?);
        if kind != LOADER && kind != NOTES {
            continue;
        }
        let at = u64::from_le_bytes(entry[8..16].try_into().ok()?);
        let len = u64::from_le_bytes(entry[32..40].try_into().ok()?).min(SEGMENT_MAX);
        let mut content = vec![0; len as usize];
        file.read_exact_at(&mut content, at).ok()?;
        match kind {
            LOADER => loader = Some(content),
            _ => is_go |= is_note_of_go(&content),
        }
    }
    match loader {
        _ if is_go => Some("is written in Go, which makes system calls by itself".to_string()),
        None => Some("is statically linked".to_string()),
        Some(name) if name.windows(7).any(|part| part == b"ld-musl") => {
            Some("uses another C library (musl)".to_string())
        }
        Some(_) => None,
    }
}

/// The linker of Go leaves a note of its own name.
fn is_note_of_go(mut notes: &[u8]) -> bool {
    while let Some((sizes, rest)) = notes.split_first_chunk::<12>() {
        let size = |at: usize| {
            u32::from_le_bytes([sizes[at], sizes[at + 1], sizes[at + 2], sizes[at + 3]]) as usize
        };
        let (name, content) = (size(0), size(4));
        if name == 4 && rest.starts_with(b"Go\0\0") {
            return true;
        }
        let padded = |size: usize| size.saturating_add(3) & !3;
        let Some(next) = rest.get(padded(name).saturating_add(padded(content))..) else { break };
        notes = next;
    }
    false
}

type Header = (u8, u16, u64, usize, usize);

fn header(file: &File) -> Option<Header> {
    let mut start = [0u8; 64];
    file.read_exact_at(&mut start, 0).ok()?;
    header_of(&start)
}

/// Class, machine, and where the program headers are, of an ELF file for machines of our byte order.
fn header_of(start: &[u8]) -> Option<Header> {
    if start.len() < 64 || &start[..4] != b"\x7fELF" || start[5] != 1 {
        return None;
    }
    let word = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]);
    let offset = u64::from_le_bytes(start[32..40].try_into().ok()?);
    Some((start[4], word(18), offset, word(54).into(), word(56).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    /// A program of our own kind, whose one program header is as given.
    fn elf(kind: u32, loader: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 + 56];
        let own = File::open(std::env::current_exe().expect("this test")).expect("open");
        own.read_exact_at(&mut bytes[..64], 0).expect("its header");
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..58].copy_from_slice(&[56, 0, 1, 0]);
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[72..80].copy_from_slice(&120u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&(loader.len() as u64).to_le_bytes());
        bytes.extend_from_slice(loader);
        bytes
    }

    fn told(bytes: &[u8], mode: u32) -> Option<String> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("written");
        let rights = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(file.path(), rights).expect("chmod");
        obstacle(file.path().as_os_str())
    }

    #[test]
    fn programs_out_of_reach_are_known() {
        let says = |told: Option<String>, what: &str| told.is_some_and(|told| told.contains(what));
        assert!(says(told(&elf(1, b""), 0o755), "statically linked"));
        assert!(says(told(&elf(3, b"/lib/ld-musl-x86_64.so.1\0"), 0o755), "musl"));
        assert_eq!(told(&elf(3, b"/lib64/ld-linux-x86-64.so.2\0"), 0o755), None);
        let mut other = elf(3, b"/lib/ld-linux.so.2\0");
        other[4] = 1;
        assert!(says(told(&other, 0o755), "word size"));
        let gnu = b"\x04\0\0\0\x02\0\0\0\x01\0\0\0GNU\0ab\0\0";
        let go = b"\x04\0\0\0\x10\0\0\0\x04\0\0\0Go\0\0";
        assert!(says(told(&elf(4, &[&gnu[..], go].concat()), 0o755), "Go"));
        assert!(says(told(&elf(4, gnu), 0o755), "statically linked"));
        // One's own set-user-id programs change nothing.
        assert_eq!(told(&elf(3, b"/lib64/ld-linux-x86-64.so.2\0"), 0o4755), None);
    }

    #[test]
    fn the_interpreter_of_a_script_counts_and_nonsense_does_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), elf(1, b"")).expect("written");
        let script = format!("#! {} -x\necho\n", file.path().display());
        assert!(told(script.as_bytes(), 0o755).is_some_and(|told| told.contains("static")));
        assert_eq!(told(b"#!/bin/sh\n", 0o755), None);
        for nonsense in [&b""[..], b"#!", b"\x7fELF", b"echo hello\n"] {
            assert_eq!(told(nonsense, 0o755), None);
        }
        assert_eq!(obstacle(OsStr::new("no-such-program-anywhere")), None);
        assert_eq!(obstacle(OsStr::new("sh")), None);
    }
}
