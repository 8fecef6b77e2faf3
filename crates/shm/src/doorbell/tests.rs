//! Doorbells: rung, heard, never blocking, end noticed.

use super::*;

#[test]
fn a_ring_is_heard_once_drained() {
    let (service, application) = Doorbell::pair().unwrap();
    service.ring().unwrap();
    service.ring().unwrap();
    let mut fds = [sys::PollFd { fd: application.raw(), events: libc::POLLIN, revents: 0 }];
    assert_eq!(sys::ppoll(&mut fds, None), Ok(1));
    assert_eq!(application.drain(), Ok(true));
    assert_eq!(sys::ppoll(&mut fds, Some(core::time::Duration::ZERO)), Ok(0));
    assert_eq!(application.drain(), Ok(true));
}

#[test]
fn nobody_can_block_the_ringer() {
    let (service, application) = Doorbell::pair().unwrap();
    // The other side makes the file blocking and never reads.
    sys::fcntl_setfl(service.raw(), 0).unwrap();
    for _ in 0..100_000 {
        service.ring().unwrap();
    }
    assert_eq!(application.drain(), Ok(true));
}

#[test]
fn the_end_of_the_other_side_is_noticed() {
    let (service, application) = Doorbell::pair().unwrap();
    let application = Doorbell::from_fd(application.into_fd());
    application.ring().unwrap();
    drop(application);
    assert_eq!(service.ring(), Err(Errno::EPIPE));
    assert_eq!(service.drain(), Ok(true));
    assert_eq!(service.drain(), Ok(false));
}
