//! Where functions begin in an ELF file of 64 bits, little endian: its table of symbols. Called by
//! `trace`. Any file is read safely; one that is no such file has no symbols.

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name, mangled.
    pub name: String,
    /// Its address in the file.
    pub address: u64,
}

const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const SYMTAB: u32 = 2;
const FUNCTION: u8 = 2;

/// All functions of a file.
pub fn functions(file: &[u8]) -> Vec<Symbol> {
    read(file).unwrap_or_default()
}

/// Whether a mangled name has all of these words: `7receive`, `11link_server`.
pub fn has_words(name: &str, words: &[&str]) -> bool {
    words.iter().all(|word| name.contains(&format!("{}{word}", word.len())))
}

fn read(file: &[u8]) -> Option<Vec<Symbol>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let sections = word(file, 40)? as usize;
    let count = usize::from(u16::from_le_bytes(file.get(60..62)?.try_into().ok()?));
    let section = |index: usize| {
        let from = sections.checked_add(index.checked_mul(SECTION_BYTES)?)?;
        file.get(from..from.checked_add(SECTION_BYTES)?)
    };
    let content = |header: &[u8]| {
        let (from, size) = (word(header, 24)? as usize, word(header, 32)? as usize);
        file.get(from..from.checked_add(size)?)
    };
    let header = (0..count).filter_map(section).find(|header| half(header, 4) == Some(SYMTAB))?;
    let symbols = content(header)?;
    let names = content(section(half(header, 40)? as usize)?)?;
    let symbol = |entry: &[u8]| {
        if entry.get(4)? & 15 != FUNCTION {
            return None;
        }
        let name = names.get(half(entry, 0)? as usize..)?;
        let end = name.iter().position(|byte| *byte == 0)?;
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        Some(Symbol { name, address: word(entry, 8)? })
    };
    Some(symbols.chunks_exact(SYMBOL_BYTES).filter_map(symbol).collect())
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function that no optimization takes away: who calls it does not know what it does.
    #[inline(never)]
    fn a_function_of_this_program() -> usize {
        std::hint::black_box(1)
    }

    #[test]
    fn this_program_has_functions() {
        let file = std::fs::read("/proc/self/exe").expect("a test is a program");
        let kept: fn() -> usize = std::hint::black_box(a_function_of_this_program);
        assert_eq!(kept(), 1);
        let found = functions(&file);
        let wanted = |symbol: &&Symbol| has_words(&symbol.name, &["a_function_of_this_program"]);
        assert!(found.iter().any(|symbol| wanted(&symbol)), "{} functions", found.len());
    }

    #[test]
    fn anything_else_has_none() {
        let file = std::fs::read("/proc/self/exe").expect("a test is a program");
        for length in [0, 5, 6, 63, 64, 1000] {
            assert_eq!(functions(&file[..length]), []);
        }
        let mut wild = file[..4096].to_vec();
        wild[40..64].fill(0xff);
        assert_eq!(functions(&wild), []);
    }
}
