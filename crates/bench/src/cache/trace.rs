//! Follows a trace of Lackey (`valgrind --tool=lackey --trace-mem=yes`): which component of the server
//! is at work, from where functions begin and where their return addresses are read again; and puts
//! what it touches into caches of all sizes. Called by `experiments::cache`.

use std::collections::HashMap;
use std::io::BufRead;

use super::elf::{Symbol, has_words};
use super::simulator::Cache;

/// Sizes of caches, bytes.
pub const SIZES: [u64; 9] =
    [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1024 << 10];

/// Components of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// Link server.
    Link,
    /// Transport server, with all that the server's loop does.
    Transport,
    /// Connection manager.
    Manager,
}

const COMPONENTS: usize = 3;
/// Words of the names of functions at which components begin; the first is where a turn does.
const ENTRIES: &[(&[&str], Component)] = &[
    (&["haypile_cost", "busy_turn"], Component::Transport),
    (&["link_server", "receive"], Component::Link),
    (&["link_server", "transmit"], Component::Link),
    (&["handle_frame"], Component::Transport),
    (&["poll_transmit"], Component::Transport),
    (&["run_manager"], Component::Manager),
];

/// Where components begin, by address in the running program.
pub struct Entries {
    turn: u64,
    components: HashMap<u64, Component>,
}

impl Entries {
    /// From the program's functions; `turn` is where a turn begins in the running program.
    ///
    /// # Errors
    /// Names the function that the program does not have.
    pub fn find(functions: &[Symbol], turn: u64) -> Result<Entries, String> {
        let named = |words: &'static [&'static str]| {
            functions.iter().filter(move |symbol| has_words(&symbol.name, words))
        };
        let lacks = |words: &[&str]| {
            format!(
                "haypile-cost has no function {}; build it from the same tree",
                words.join("::")
            )
        };
        let anchor = named(ENTRIES[0].0).next().ok_or_else(|| lacks(ENTRIES[0].0))?;
        let shift = turn.wrapping_sub(anchor.address);
        let mut components = HashMap::new();
        for (words, component) in ENTRIES {
            let before = components.len();
            components.extend(
                named(words).map(|symbol| (symbol.address.wrapping_add(shift), *component)),
            );
            if components.len() == before {
                return Err(lacks(words));
            }
        }
        Ok(Entries { turn, components })
    }
}

/// Misses of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Misses {
    /// Of instructions: one cache for all, then one for each component.
    pub instructions: [u64; 2],
    /// Of data, likewise.
    pub data: [u64; 2],
}

/// Instruction and data caches of one size.
struct Level {
    combined: [Cache; 2],
    split: [[Cache; 2]; COMPONENTS],
}

/// What is known while the trace goes by.
pub struct Follower {
    entries: Entries,
    levels: Vec<Level>,
    /// Components at work, with where their return address is.
    calls: Vec<(Component, u64)>,
    /// Where eight bytes were last stored, by the instruction before.
    stored: Option<u64>,
    /// Misses after each turn.
    turns: Vec<Vec<Misses>>,
    /// Instructions counted by component.
    pub instructions: [u64; COMPONENTS],
}

impl Follower {
    /// Empty caches.
    pub fn new(entries: Entries) -> Follower {
        let pair = |size| [Cache::new(size), Cache::new(size)];
        let level =
            |size| Level { combined: pair(size), split: [(); COMPONENTS].map(|()| pair(size)) };
        Follower {
            entries,
            levels: SIZES.into_iter().map(level).collect(),
            calls: Vec::new(),
            stored: None,
            turns: Vec::new(),
            instructions: [0; COMPONENTS],
        }
    }

    /// Reads a whole trace.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn follow(&mut self, trace: impl BufRead) -> std::io::Result<()> {
        for line in trace.split(b'\n') {
            self.line(&line?);
        }
        Ok(())
    }

    /// One line: `I  04001000,3` or ` L 1ffeff,8`; anything else is passed over.
    fn line(&mut self, line: &[u8]) {
        let Some((kind, rest)) = line.split_at_checked(3) else { return };
        let Some((address, bytes)) = parse(rest) else { return };
        match kind {
            b"I  " => self.instruction(address, bytes),
            b" L " => self.data(address, bytes, true),
            b" S " => {
                self.stored = (bytes == 8).then_some(address);
                self.data(address, bytes, false);
            }
            b" M " => self.data(address, bytes, false),
            _ => {}
        }
    }

    fn instruction(&mut self, address: u64, bytes: u64) {
        let began = self.entries.components.get(&address).copied();
        // A function begins behind the store of its return address; outside of turns only a turn does.
        if let (Some(component), Some(slot)) = (began, self.stored)
            && (!self.calls.is_empty() || address == self.entries.turn)
        {
            self.calls.push((component, slot));
        }
        self.stored = None;
        if let Some((component, _)) = self.calls.last() {
            self.instructions[*component as usize] += 1;
            self.touch(0, address, bytes);
        }
    }

    fn data(&mut self, address: u64, bytes: u64, load: bool) {
        self.touch(1, address, bytes);
        if !load || bytes != 8 {
            return;
        }
        // The return address is read: that function is over, with all that it had called.
        if let Some(place) = self.calls.iter().rposition(|(_, slot)| *slot == address) {
            self.calls.truncate(place);
            if self.calls.is_empty() {
                self.turns.push(self.misses());
            }
        }
    }

    fn touch(&mut self, kind: usize, address: u64, bytes: u64) {
        let Some((component, _)) = self.calls.last() else { return };
        for level in &mut self.levels {
            level.combined[kind].touch(address, bytes);
            level.split[*component as usize][kind].touch(address, bytes);
        }
    }

    fn misses(&self) -> Vec<Misses> {
        let of = |level: &Level, kind: usize| {
            let split = level.split.iter().map(|caches| caches[kind].misses).sum();
            [level.combined[kind].misses, split]
        };
        let all = |level: &Level| Misses { instructions: of(level, 0), data: of(level, 1) };
        self.levels.iter().map(all).collect()
    }

    /// Misses by size in the second half of the turns, when caches are warm, and the share of the
    /// turns that this is. `None` without turns.
    pub fn second_half(&self) -> Option<(Vec<Misses>, f64)> {
        let (first, last) = (self.turns.get(self.turns.len() / 2)?, self.turns.last()?);
        let turns = self.turns.len() - 1 - self.turns.len() / 2;
        let less = |last: [u64; 2], first: [u64; 2]| [last[0] - first[0], last[1] - first[1]];
        let difference = |(last, first): (&Misses, &Misses)| Misses {
            instructions: less(last.instructions, first.instructions),
            data: less(last.data, first.data),
        };
        let misses = last.iter().zip(first).map(difference).collect();
        (turns > 0).then(|| (misses, turns as f64 / self.turns.len() as f64))
    }
}

/// `04001000,3`.
fn parse(text: &[u8]) -> Option<(u64, u64)> {
    let comma = text.iter().position(|byte| *byte == b',')?;
    let address = std::str::from_utf8(&text[..comma]).ok()?;
    let bytes = std::str::from_utf8(&text[comma + 1..]).ok()?;
    Some((u64::from_str_radix(address, 16).ok()?, bytes.trim_end().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower() -> Follower {
        let symbol = |name: &str, address| Symbol { name: name.into(), address };
        let functions = [
            symbol("_ZN12haypile_cost9busy_turn17hE", 0x100),
            symbol("_ZN11link_server7receive17hE", 0x200),
            symbol("_ZN11link_server8transmit17hE", 0x300),
            symbol("_ZN12handle_frame17hE", 0x400),
            symbol("_ZN13poll_transmit17hE", 0x500),
            symbol("_ZN11run_manager17hE", 0x600),
        ];
        assert!(Entries::find(&functions[1..], 0x1100).is_err());
        Follower::new(Entries::find(&functions, 0x1100).expect("all there"))
    }

    /// A turn that calls the link server, which calls the transport server; each returns.
    const TURN: &str = "I  00005000,5\n S 7fe0,8\nI  00001100,4\nI  00001104,5\n S 7f00,8\n\
                        I  00001200,4\nI  00001204,5\n S 7e00,8\nI  00001400,1\n L 7e00,8\n\
                        I  00001209,1\n L 7f00,8\nI  00001109,1\n L 7fe0,8\nI  00005005,9\n";

    #[test]
    fn components_are_told_apart_by_calls_and_returns() {
        let mut follower = follower();
        follower.follow(format!("==1== Lackey\n{TURN}{TURN}").as_bytes()).expect("text");
        // Twice: the turn's three, the link server's three, the frame's one; nothing outside.
        assert_eq!(follower.instructions, [6, 8, 0]);
        assert_eq!(follower.turns.len(), 2);
        assert!(follower.calls.is_empty());
    }

    #[test]
    fn warm_caches_do_not_miss_again() {
        let mut follower = follower();
        assert_eq!(follower.second_half(), None);
        follower.follow(TURN.repeat(8).as_bytes()).expect("text");
        let (misses, share) = follower.second_half().expect("eight turns");
        assert_eq!(misses, vec![Misses::default(); SIZES.len()]);
        assert_eq!(share, 3.0 / 8.0);
    }

    #[test]
    fn a_function_outside_of_turns_is_nobodys() {
        let mut follower = follower();
        follower.follow("I  5,5\n S 7f,8\nI  00001400,4\n L 99,8\n".as_bytes()).expect("text");
        assert_eq!((follower.instructions, follower.calls.len()), ([0; 3], 0));
    }
}
