//! On which cores the host does its half of the work for an interface: what follows a frame that we
//! have written (its own protocol processing, waking its programs) runs inside our write unless the
//! kernel is told to do it elsewhere (receive packet steering, Documentation/networking/scaling.rst).
//! Called by the supervisor when a server runs out of time and other cores are idle; the choice is
//! made there.
//!
//! The setting is a file of /sys, which shows the network namespace it was mounted in, and that may
//! be another one with an interface of the same name. So a /sys of our own is mounted, seen by one
//! short-lived thread alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::LinkError;
use crate::sys;

const SYS: &str = "/sys";
/// The numbers of the machine's cores, as in "0-3,8-11".
const PRESENT: &str = "/sys/devices/system/cpu/present";

/// Has the host's half of an interface's work done on `cores` (numbers); an empty list means again
/// where the frame comes from. Must be called in the interface's network namespace.
///
/// # Errors
/// When there is no such interface, /sys cannot be mounted (which takes root), or the kernel is
/// without the feature.
pub fn set(interface: &str, cores: &[usize]) -> Result<(), LinkError> {
    let mask = mask(cores);
    let attempt = || format!("set the cores of the host's half of {interface}");
    if interface.contains('/') {
        return Err(LinkError::from_errno(attempt(), libc::EINVAL));
    }
    let present = fs::read_to_string(PRESENT).unwrap_or_default();
    if let Some(core) = cores.iter().find(|core| is_absent(&present, **core)) {
        let why = format!("there is no core {core}, only {}", present.trim());
        return Err(LinkError::new(attempt(), io::Error::other(why)));
    }
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            sys::mount_own_sysfs()?;
            write(Path::new(SYS), interface, &mask)
        });
        worker.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
    .map_err(|error| LinkError::new(attempt(), error))
}

fn write(root: &Path, interface: &str, mask: &str) -> io::Result<()> {
    let queues: PathBuf = root.join("class/net").join(interface).join("queues");
    for queue in fs::read_dir(queues)? {
        let queue = queue?;
        if queue.file_name().to_string_lossy().starts_with("rx-") {
            fs::write(queue.path().join("rps_cpus"), mask)?;
        }
    }
    Ok(())
}

/// Whether a list of numbers and ranges is without one. A list that cannot be read lacks none.
fn is_absent(list: &str, wanted: usize) -> bool {
    let holds = |range: &str| -> Option<bool> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.parse().ok()?..=last.parse().ok()?).contains(&wanted))
    };
    let mut ranges = list.trim().split(',').map(holds);
    ranges.all(|held| held == Some(false))
}

/// Groups of 32 bits in hexadecimal, the highest first, as the kernel's bitmaps are written.
fn mask(cores: &[usize]) -> String {
    let highest = cores.iter().max().map_or(0, |core| core / 32);
    let mut words = vec![0_u32; highest + 1];
    for core in cores {
        words[core / 32] |= 1 << (core % 32);
    }
    let words: Vec<String> = words.iter().rev().map(|word| format!("{word:x}")).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns;
    use crate::tap::{Tap, TapConfig};

    #[test]
    fn masks_are_written_as_the_kernel_reads_them() {
        assert_eq!(mask(&[]), "0");
        assert_eq!(mask(&[0, 1]), "3");
        assert_eq!(mask(&[35, 0]), "8,1");
    }

    #[test]
    fn cores_that_are_not_there_are_found() {
        assert!(!is_absent("0-3\n", 3) && is_absent("0-3\n", 4));
        assert!(!is_absent("0,2-3,8", 8) && is_absent("0,2-3,8", 1));
        assert!(!is_absent("", 1) && !is_absent("many", 1));
    }

    #[test]
    fn names_with_a_path_in_them_are_refused() {
        assert!(set("../../kernel", &[0]).is_err());
    }

    #[test]
    fn every_queue_of_an_interface_in_its_own_namespace_is_set() {
        let outcome = std::thread::spawn(|| {
            let _namespace = netns::new_network_namespace()?;
            let config =
                TapConfig { multi_queue: true, ..TapConfig::new(1500, [2, 0, 0, 0, 0, 9]) };
            let tap = Tap::open(&config)?;
            set(tap.name(), &[0])?;
            set(tap.name(), &[])?;
            // The host's /sys was not touched: it does not show the interface.
            assert!(!Path::new(SYS).join("class/net").join(tap.name()).exists());
            let gone = set("nowhere0", &[0]);
            Ok::<bool, LinkError>(gone.is_err())
        });
        match outcome.join().expect("no panic") {
            Ok(refused) => assert!(refused, "an interface that does not exist"),
            Err(error) => eprintln!("not tried, needs root: {error}"),
        }
    }
}
