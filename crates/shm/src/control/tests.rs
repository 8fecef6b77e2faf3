//! The control connection: messages with descriptors, strangers, the end.

use super::*;
use crate::messages::ControlRequest;

#[test]
fn messages_arrive_with_their_descriptors() {
    let (left, right) = sys::socketpair_seqpacket().unwrap();
    let (inner, _other) = sys::socketpair_stream().unwrap();
    let request = ControlRequest::NewWatcher { watcher: 9 };
    send(left.raw(), &request.encode(), &[inner.raw()]).unwrap();
    let mut received = receive(right.raw()).unwrap();
    assert_eq!(ControlRequest::decode(&received.message), Ok(request));
    let fd = received.fds[0].take().unwrap();
    assert_eq!(sys::so_cookie(fd.raw()), sys::so_cookie(inner.raw()));
    assert_eq!(receive(right.raw()).unwrap_err(), Errno::EAGAIN);
    drop(left);
    assert_eq!(receive(right.raw()).unwrap_err(), Errno::EPIPE);
    assert_eq!(send(right.raw(), &request.encode(), &[]), Err(Errno::EPIPE));
}

#[test]
fn messages_of_another_length_are_refused() {
    let (left, right) = sys::socketpair_seqpacket().unwrap();
    for len in [1, 63, 65] {
        sys::send(left.raw(), &vec![1; len], 0).unwrap();
        assert_eq!(receive(right.raw()).unwrap_err(), Errno::EPROTO);
    }
}

#[test]
fn the_attach_sockets_of_a_service_lie_beside_each_other() {
    assert_eq!(attach_path(b"/run/x/attach.sock", 0), b"/run/x/attach.sock");
    assert_eq!(attach_path(b"/run/x/attach.sock", 1), b"/run/x/attach-1.sock");
    assert_eq!(attach_path(b"/run/x/other", 62), b"/run/x/other-62");
    assert_eq!(door_path(b"/run/x/attach.sock"), b"/run/x/door.sock");
    assert_eq!(door_path(b"attach.sock"), b"door.sock");
}
