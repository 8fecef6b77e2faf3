//! Namespaces made by the tests, on threads of their own.

use super::*;

fn names() -> Vec<String> {
    Netlink::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect()
}

#[test]
fn work_in_another_namespace_leaves_this_one() {
    let namespace = match Namespace::create() {
        Ok(namespace) => namespace,
        Err(error) => return println!("skipped: {error}"),
    };
    let before = std::fs::read_link(CURRENT).unwrap();
    let (inside, links) =
        run_in(namespace.as_fd(), || (std::fs::read_link(CURRENT).unwrap(), names())).unwrap();
    assert_ne!(inside, before);
    assert!(links.contains(&"lo".to_owned()));
    assert_eq!(std::fs::read_link(CURRENT).unwrap(), before);
}

#[test]
fn a_thread_may_leave_and_come_back() {
    let outcome = std::thread::spawn(|| {
        let home = Namespace::open_current().unwrap();
        let before = std::fs::read_link(CURRENT).unwrap();
        if let Err(error) = new_network_namespace() {
            println!("skipped: {error}");
            return;
        }
        assert_ne!(std::fs::read_link(CURRENT).unwrap(), before);
        loopback_up().unwrap();
        enter(home.as_fd()).unwrap();
        assert_eq!(std::fs::read_link(CURRENT).unwrap(), before);
    })
    .join();
    assert!(outcome.is_ok());
}

#[test]
fn entering_something_else_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = enter(file.as_fd()).unwrap_err();
    assert!(error.to_string().starts_with("cannot enter the network namespace: "), "{error}");
    assert!(Namespace::open("/nonexistent").unwrap_err().to_string().contains("/nonexistent"));
}
