//! The status segment between both sides.

use super::*;

#[test]
fn applications_see_sleep_and_cannot_write() {
    let service = ServiceStatus::create().unwrap();
    let fd = || crate::sys::dup_at_least(service.fd(), 3).unwrap();
    assert!(Segment::from_fd(fd(), STATUS_SIZE, false).is_err());
    let application = AppStatus::open(fd()).unwrap();
    let (rung, another) = (AtomicU32::new(0), AtomicU32::new(0));
    assert!(!application.must_wake(&rung));
    service.prepare_sleep();
    assert!(application.must_wake(&rung), "the first rings");
    assert!(!application.must_wake(&rung), "and nobody again for this sleep");
    assert!(application.must_wake(&another), "but on each bell");
    service.awake();
    service.awake();
    assert!(!application.must_wake(&rung));
    service.prepare_sleep();
    assert!(application.must_wake(&rung), "the next sleep is another");
}

#[test]
fn the_core_of_the_service_is_known_when_it_has_said_so() {
    let service = ServiceStatus::create().unwrap();
    let application = AppStatus::open(crate::sys::dup_at_least(service.fd(), 3).unwrap()).unwrap();
    assert!(!(0..4).any(|core| application.is_on_core(core)));
    service.set_core(Some(2));
    assert!(application.is_on_core(2) && !application.is_on_core(0));
    service.set_core(None);
    assert!(!(0..4).any(|core| application.is_on_core(core)));
}

#[test]
fn another_version_is_refused() {
    let segment = Segment::create("test", STATUS_SIZE).unwrap();
    let fd = crate::sys::dup_at_least(segment.fd().unwrap(), 3).unwrap();
    assert_eq!(AppStatus::open(fd).unwrap_err(), Errno::EPROTO);
}
