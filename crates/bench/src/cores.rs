//! Which core runs what. Owns the reading of the machine's topology (sysfs) and the choice;
//! [`choose`] is pure. Called by `frame` before anything starts.
//!
//! Both sides of a comparison get the same cores: where Haypile's service has a core of its own,
//! the kernel's side may use that core for the program.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// One logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Core {
    /// Linux's number.
    pub number: usize,
    /// Processors of the same physical core, itself included (hyper-threads).
    pub siblings: Vec<usize>,
    /// Processors that share its last-level cache, itself included: its core complex.
    pub complex: Vec<usize>,
    /// Socket.
    pub package: usize,
}

/// Where services and programs run in relation to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// A program and its service on one core; the client on another.
    Shared,
    /// Client, program and service each on a core of its own.
    Own,
    /// Everything on one core.
    One,
}

/// Which core each part runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cores {
    /// The load generator.
    pub client: Vec<usize>,
    /// The client's service, where it has one.
    pub client_service: Vec<usize>,
    /// The server program on Haypile.
    pub program: Vec<usize>,
    /// The service of the server program.
    pub service: Vec<usize>,
    /// This process, which waits while others are measured.
    pub bench: Vec<usize>,
}

impl Cores {
    /// Cores of the server program on the kernel: all that the other side has for program and service.
    pub fn kernel_program(&self) -> Vec<usize> {
        union(&self.program, &self.service)
    }

    /// Cores of the client where its stack is the kernel's.
    pub fn kernel_client(&self) -> Vec<usize> {
        union(&self.client, &self.client_service)
    }

    /// Every core that a measured part runs on.
    pub fn measured(&self) -> Vec<usize> {
        union(&self.kernel_client(), &self.kernel_program())
    }

    /// From `--cores`: `client=1,program=2,service=3,client-service=0,bench=0`, a part's cores joined by `+`.
    /// Parts left out stay as chosen.
    ///
    /// # Errors
    /// An unknown part or a core that may not be used.
    pub fn with(mut self, text: &str, allowed: &[usize]) -> Result<Cores, String> {
        for assignment in text.split(',').filter(|part| !part.is_empty()) {
            let wrong = || {
                format!(
                    "--cores {assignment}: not PART=CORE[+CORE...]; \
                     parts: client, client-service, program, service, bench"
                )
            };
            let (part, numbers) = assignment.split_once('=').ok_or_else(wrong)?;
            let numbers: Result<Vec<usize>, _> = numbers.split('+').map(str::parse).collect();
            let numbers = numbers.map_err(|_| wrong())?;
            if let Some(missing) = numbers.iter().find(|number| !allowed.contains(number)) {
                return Err(format!(
                    "--cores {assignment}: core {missing} is not among {allowed:?}"
                ));
            }
            let place = match part {
                "client" => &mut self.client,
                "client-service" => &mut self.client_service,
                "program" => &mut self.program,
                "service" => &mut self.service,
                "bench" => &mut self.bench,
                _ => return Err(wrong()),
            };
            *place = numbers;
        }
        Ok(self)
    }
}

fn union(one: &[usize], other: &[usize]) -> Vec<usize> {
    let mut all = [one, other].concat();
    all.sort_unstable();
    all.dedup();
    all
}

/// Chooses cores: of the largest core complex, one thread of each physical core before second threads, the machine's
/// first core last, because interrupts tend to go there. `two_services`: the client has a service as well.
pub fn choose(topology: &[Core], placement: Placement, two_services: bool) -> Cores {
    let order = order(topology);
    let take = |index: usize| vec![order.get(index % order.len().max(1)).copied().unwrap_or(0)];
    let (client, client_service, program, service) = match placement {
        Placement::One => (0, 0, 0, 0),
        Placement::Shared => (0, 0, 1, 1),
        Placement::Own if two_services => (0, 2, 1, 3),
        Placement::Own => (0, 0, 1, 2),
    };
    let used = 1 + [client, client_service, program, service].into_iter().max().unwrap_or(0);
    Cores {
        client: take(client),
        client_service: take(client_service),
        program: take(program),
        service: take(service),
        // On the client's core where none is left: it only waits.
        bench: take(if used < order.len() { order.len() - 1 } else { client }),
    }
}

/// All cores in the order of choice.
pub fn order(topology: &[Core]) -> Vec<usize> {
    let mut complexes: Vec<&Vec<usize>> = topology.iter().map(|core| &core.complex).collect();
    complexes.sort_by_key(|complex| (std::cmp::Reverse(complex.len()), complex.first().copied()));
    let first = topology.iter().map(|core| core.number).min();
    let rank = |core: &Core| {
        let second_thread = core.siblings.first().is_some_and(|sibling| *sibling < core.number);
        let complex = complexes.iter().position(|complex| **complex == core.complex);
        (complex, second_thread, Some(core.number) == first, core.number)
    };
    let mut cores: Vec<&Core> = topology.iter().collect();
    cores.sort_by_key(|core| rank(core));
    cores.iter().map(|core| core.number).collect()
}

/// The cores that this process may use.
///
/// # Errors
/// When /proc or sysfs do not tell.
pub fn read() -> Result<Vec<Core>, String> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc: {error}"))?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let allowed = allowed.and_then(parse_list).ok_or("/proc/self/status tells no cores")?;
    Ok(read_from(Path::new("/sys/devices/system/cpu"), &allowed))
}

/// As [`read`], from another root folder and for given cores. What sysfs leaves out counts as not shared.
pub fn read_from(root: &Path, allowed: &[usize]) -> Vec<Core> {
    let core = |number: &usize| {
        let folder = root.join(format!("cpu{number}"));
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let list = |name: &str| text(name).as_deref().and_then(parse_list);
        let level =
            |index: usize| text(&format!("cache/index{index}/level"))?.trim().parse::<u32>().ok();
        let last = (0..8).filter_map(|index| Some((level(index)?, index))).max();
        let complex =
            last.and_then(|(_, index)| list(&format!("cache/index{index}/shared_cpu_list")));
        Core {
            number: *number,
            siblings: list("topology/thread_siblings_list").unwrap_or_else(|| vec![*number]),
            complex: complex.unwrap_or_else(|| vec![*number]),
            package: text("topology/physical_package_id")
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0),
        }
    };
    allowed.iter().map(core).collect()
}

/// The numbers of `0-3,8`.
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        numbers.extend(from..=to.min(from + 4096));
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(count: usize) -> Vec<Core> {
        let all: Vec<usize> = (0..count).collect();
        let core =
            |number| Core { number, siblings: vec![number], complex: all.clone(), package: 0 };
        (0..count).map(core).collect()
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(parse_list("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list(""), Some(Vec::new()));
        assert_eq!(parse_list("a"), None);
    }

    #[test]
    fn parts_get_cores_of_their_own_as_far_as_there_are_any() {
        let cores = choose(&flat(4), Placement::Own, false);
        assert_eq!((cores.client[0], cores.program[0], cores.service[0]), (1, 2, 3));
        assert_eq!(cores.bench, [0]);
        let cores = choose(&flat(2), Placement::Shared, false);
        assert_eq!((cores.client[0], cores.program[0], cores.service[0]), (1, 0, 0));
        let cores = choose(&flat(1), Placement::Own, true);
        assert_eq!(cores.measured(), [0]);
        assert_eq!(choose(&flat(8), Placement::One, true).measured().len(), 1);
        assert_eq!(choose(&flat(8), Placement::Own, true).measured().len(), 4);
    }

    #[test]
    fn both_sides_have_the_same_cores() {
        let cores = choose(&flat(4), Placement::Own, false);
        assert_eq!(cores.kernel_program(), [2, 3]);
        assert_eq!(cores.kernel_client(), [1]);
    }

    #[test]
    fn second_threads_and_other_complexes_come_last() {
        let core = |number: usize, siblings: [usize; 2], complex: &[usize]| Core {
            number,
            siblings: siblings.to_vec(),
            complex: complex.to_vec(),
            package: 0,
        };
        let (large, small) = ([0, 1, 4, 5], [2, 6]);
        let topology = [
            core(0, [0, 4], &large),
            core(1, [1, 5], &large),
            core(2, [2, 6], &small),
            core(4, [0, 4], &large),
            core(5, [1, 5], &large),
            core(6, [2, 6], &small),
        ];
        assert_eq!(order(&topology), [1, 0, 4, 5, 2, 6]);
    }

    #[test]
    fn cores_can_be_given() {
        let chosen = choose(&flat(4), Placement::Shared, false);
        let cores = chosen.clone().with("program=2+3,client=0", &[0, 1, 2, 3]).expect("right");
        assert_eq!((cores.program, cores.client), (vec![2, 3], vec![0]));
        for wrong in ["program", "program=x", "who=1", "client=9"] {
            assert!(chosen.clone().with(wrong, &[0, 1, 2, 3]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn this_machine_has_cores() {
        let topology = read().expect("sysfs");
        assert!(!topology.is_empty());
        assert!(topology.iter().all(|core| core.complex.contains(&core.number)), "{topology:?}");
    }
}
