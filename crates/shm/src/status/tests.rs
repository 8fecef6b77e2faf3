//! The status segment between both sides.

use super::*;

#[test]
fn applications_see_sleep_and_epoch_and_cannot_write() {
    let service = ServiceStatus::create().unwrap();
    let fd = || crate::sys::dup_at_least(service.fd(), 3).unwrap();
    assert!(Segment::from_fd(fd(), STATUS_SIZE, false).is_err());
    let application = AppStatus::open(fd()).unwrap();
    assert!(!application.service_sleeping());
    service.prepare_sleep();
    assert!(application.service_sleeping() && application.service_sleeping());
    service.awake();
    service.set_epoch(3);
    assert!(!application.service_sleeping());
    assert_eq!(application.epoch(), 3);
}

#[test]
fn another_version_is_refused() {
    let segment = Segment::create("test", STATUS_SIZE).unwrap();
    let fd = crate::sys::dup_at_least(segment.fd().unwrap(), 3).unwrap();
    assert_eq!(AppStatus::open(fd).unwrap_err(), Errno::EPROTO);
}
