//! What several modules' tests need: two servers' ends of one peer segment.

use std::os::fd::RawFd;
use std::rc::Rc;

use haypile_shm::peer::{self, FrameEnd, PeerBell, PeerSegment, PeerSide};
use haypile_shm::{Dialogue, Doorbell, Fd, ServiceStatus};

/// One server's end, with the bell of the other.
pub(crate) type End = ((Dialogue, Option<FrameEnd>), Rc<PeerBell>);

/// Two ends, and what wakes their servers.
pub(crate) struct PeerPair {
    pub(crate) first: Option<End>,
    pub(crate) second: Option<End>,
    pub(crate) first_status: ServiceStatus,
    pub(crate) first_bell: Doorbell,
    pub(crate) second_status: ServiceStatus,
    pub(crate) second_bell: Doorbell,
}

/// Makes them.
pub(crate) fn peer_pair(frames: bool) -> PeerPair {
    let segment = PeerSegment::create(frames).unwrap();
    let ((first_status, first_bell, to_first), (second_status, second_bell, to_second)) =
        (sleeper(), sleeper());
    let end = |side, bell| (peer::open(copy(segment.fd()), side, frames).unwrap(), Rc::new(bell));
    PeerPair {
        first: Some(end(PeerSide::First, to_second)),
        second: Some(end(PeerSide::Second, to_first)),
        first_status,
        first_bell,
        second_status,
        second_bell,
    }
}

fn sleeper() -> (ServiceStatus, Doorbell, PeerBell) {
    let status = ServiceStatus::create().unwrap();
    let (own, theirs) = Doorbell::pair().unwrap();
    let bell = PeerBell::new(copy(status.fd()), theirs.into_fd()).unwrap();
    (status, own, bell)
}

fn copy(fd: RawFd) -> Fd {
    let fd = Fd::from_raw(fd);
    let copy = fd.try_clone_at_least(0).unwrap();
    let _: RawFd = fd.into_raw();
    copy
}
