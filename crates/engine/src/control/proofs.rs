//! How a process shows to any server that a name is its own: its home has given it a keyed hash of
//! the name and of its number in the kernel, under the secret that all servers of a service share.
//! Used by the service when processes attach.

use core::hash::Hasher;

use siphasher::sip::SipHasher24;

use super::names::ProcessName;
use crate::keys::{FOR_PROCESS_NAMES, choice_key};

/// Makes and checks proofs of names.
#[derive(Clone)]
pub struct Proofs {
    key: [u8; 16],
}

impl Proofs {
    /// Under the secret of a service.
    pub fn new(secret: &[u8; 32]) -> Proofs {
        Proofs { key: choice_key(secret) }
    }

    /// What the process `pid` shows with the name.
    pub fn of(&self, name: ProcessName, pid: i32) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_u8(FOR_PROCESS_NAMES);
        hasher.write(&name.word().to_be_bytes());
        hasher.write(&pid.to_be_bytes());
        hasher.finish()
    }

    /// Whether that is what it shows.
    pub fn holds(&self, name: ProcessName, pid: i32, proof: u64) -> bool {
        self.of(name, pid) == proof
    }
}

impl core::fmt::Debug for Proofs {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str("Proofs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_name_one_process_and_one_service() {
        let proofs = Proofs::new(&[3; 32]);
        let name = ProcessName::new(1, 7);
        let proof = proofs.of(name, 100);
        assert!(proofs.holds(name, 100, proof));
        assert!(!proofs.holds(name, 101, proof));
        assert!(!proofs.holds(ProcessName::new(0, 7), 100, proof));
        assert!(!proofs.holds(ProcessName::new(1, 8), 100, proof));
        assert!(!Proofs::new(&[4; 32]).holds(name, 100, proof));
        assert!(!format!("{proofs:?}").contains('3'));
    }
}
