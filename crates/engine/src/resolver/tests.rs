//! Questions answered by hand, soundly and not.

use super::*;

const START: Instant = Instant::from_us(1_000);
const SOCKET: SocketId = SocketId::new(3, 1);

fn servers() -> Vec<IpAddr> {
    vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]
}

/// A record of an answer.
fn record(name: &str, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = encode(name).expect("name");
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The answer to a question with these flags and records.
fn answer(question: &[u8], flags: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let end = question.len() - 11;
    let mut message = question[..end].to_vec();
    message[2..4].copy_from_slice(&(0x8180 | flags).to_be_bytes());
    message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    message[10..12].fill(0);
    message.extend(records.concat());
    message
}

fn ask(name: &str, kind: RecordKind) -> (Resolver, QueryId, Attempt) {
    let mut resolver = Resolver::default();
    let id = resolver.ask(START, name, kind, servers()).expect("a good name");
    let attempt = resolver.poll_attempt(START, 0x1234).expect("an attempt");
    resolver.set_socket(id, SOCKET);
    (resolver, id, attempt)
}

fn outcome(
    name: &str,
    kind: RecordKind,
    flags: u16,
    records: &[Vec<u8>],
) -> Result<Answer, ResolveError> {
    let (mut resolver, id, attempt) = ask(name, kind);
    assert!(resolver.handle_message(START, SOCKET, &answer(&attempt.payload, flags, records)));
    assert_eq!(resolver.poll_finished(), Some(id));
    resolver.take(id).expect("an outcome")
}

#[test]
fn addresses_and_names_are_found() {
    let four = outcome(
        "Pile.Test.",
        RecordKind::A,
        0,
        &[
            record("pile.test", 1, 60, &[10, 0, 0, 9]),
            record("stranger.test", 1, 60, &[10, 0, 0, 66]),
            record("PILE.test", 1, 30, &[10, 0, 0, 10]),
        ],
    );
    let addresses = vec![[10, 0, 0, 9].into(), [10, 0, 0, 10].into()];
    assert_eq!(four, Ok(Answer { addresses, names: Vec::new(), ttl_s: 30 }));
    let name = reverse_name([10, 77, 0, 9].into());
    assert_eq!(name, "9.0.77.10.in-addr.arpa");
    let target = encode("pile\u{7f}".trim_end_matches('\u{7f}')).expect("name");
    let names = outcome(&name, RecordKind::Ptr, 0, &[record(&name, 12, 60, &target)]);
    assert_eq!(names.expect("names").names, ["pile"]);
    let long = reverse_name("2001:db8::1".parse().expect("address"));
    assert!(long.starts_with("1.0.0.0.") && long.ends_with("8.b.d.0.1.0.0.2.ip6.arpa"), "{long}");
}

#[test]
fn aliases_are_followed_within_and_beyond_an_answer() {
    let alias = |from: &str, to: &str| record(from, 5, 20, &encode(to).expect("name"));
    let found = outcome(
        "a.test",
        RecordKind::A,
        0,
        &[
            alias("a.test", "b.test"),
            alias("b.test", "c.test"),
            record("c.test", 1, 60, &[10, 0, 0, 9]),
        ],
    );
    assert_eq!(found.expect("found").ttl_s, 20);
    // The target is not in the answer: it is asked for.
    let (mut resolver, id, first) = ask("a.test", RecordKind::A);
    let reply = answer(&first.payload, 0, &[alias("a.test", "b.test")]);
    assert!(resolver.handle_message(START, SOCKET, &reply));
    assert_eq!(resolver.poll_socket(), Some(SOCKET));
    let second = resolver.poll_attempt(START, 99).expect("a second question");
    resolver.set_socket(id, SOCKET);
    let reply = answer(&second.payload, 0, &[record("b.test", 1, 60, &[10, 0, 0, 9])]);
    assert!(resolver.handle_message(START, SOCKET, &reply));
    assert!(resolver.take(id).expect("an outcome").is_ok());
    let circle = outcome(
        "a.test",
        RecordKind::A,
        0,
        &[alias("a.test", "b.test"), alias("b.test", "a.test")],
    );
    assert_eq!(circle, Err(ResolveError::ChainTooLong));
}

#[test]
fn refusals_say_what_they_are() {
    let refused = |flags| outcome("pile.test", RecordKind::A, flags, &[]);
    assert_eq!(refused(3), Err(ResolveError::NoSuchName));
    assert_eq!(refused(0), Err(ResolveError::NoData));
    assert_eq!(refused(0x200), Err(ResolveError::Truncated));
    let mut resolver = Resolver::default();
    for bad in ["", "a..b", &"x".repeat(64), &"abc.".repeat(70), "a b"] {
        let refused = resolver.ask(START, bad, RecordKind::A, servers());
        assert_eq!(refused, Err(ResolveError::BadName), "{bad}");
    }
    let refused = resolver.ask(START, "pile.test", RecordKind::A, Vec::new());
    assert_eq!(refused, Err(ResolveError::NoServer));
}

#[test]
fn silent_and_failing_servers_give_way_to_the_next() {
    let (mut resolver, id, first) = ask("pile.test", RecordKind::A);
    assert!(resolver.handle_message(START, SOCKET, &answer(&first.payload, 2, &[])));
    let mut asked = vec![first.server];
    let mut now = START;
    while resolver.poll_finished().is_none() {
        if let Some(attempt) = resolver.poll_attempt(now, 7) {
            asked.push(attempt.server);
            resolver.set_socket(id, SOCKET);
        }
        now = resolver.next_timeout().unwrap_or(now);
        resolver.handle_timers(now);
    }
    let [one, two] = [servers()[0], servers()[1]];
    assert_eq!(asked, [one, two, one, two]);
    assert_eq!(resolver.take(id), Some(Err(ResolveError::ServerFailed)));
}

#[test]
fn answers_are_kept_for_their_time() {
    let (mut resolver, id, attempt) = ask("pile.test", RecordKind::A);
    let reply = answer(&attempt.payload, 0, &[record("pile.test", 1, 60, &[10, 0, 0, 9])]);
    assert!(resolver.handle_message(START, SOCKET, &reply));
    let _ = resolver.take(id);
    let later = START.plus_us(59_000_000);
    let again = resolver.ask(later, "PILE.test", RecordKind::A, Vec::new()).expect("cached");
    assert_eq!(resolver.poll_attempt(later, 1), None);
    assert_eq!(resolver.take(again).expect("at once").expect("found").ttl_s, 1);
    let late = START.plus_us(60_000_000);
    let gone = resolver.ask(late, "pile.test", RecordKind::A, Vec::new());
    assert_eq!(gone, Err(ResolveError::NoServer));
}

#[test]
fn what_does_not_answer_the_question_is_ignored() {
    let (mut resolver, _, attempt) = ask("pile.test", RecordKind::A);
    let good = answer(&attempt.payload, 0, &[record("pile.test", 1, 60, &[10, 0, 0, 9])]);
    let mut wrong_id = good.clone();
    wrong_id[0] ^= 1;
    let mut wrong_name = good.clone();
    wrong_name[13] ^= 1;
    let mut no_answer = good.clone();
    no_answer[2] &= 0x7f;
    for bad in [&wrong_id, &wrong_name, &no_answer, &good[..20].to_vec()] {
        assert!(!resolver.handle_message(START, SOCKET, bad));
    }
    assert!(!resolver.handle_message(START, SocketId::new(4, 1), &good));
    // Every prefix and every flipped bit is survived.
    for at in 0..good.len() {
        for bit in 0..8 {
            let (mut resolver, _, attempt) = ask("pile.test", RecordKind::A);
            let mut bad =
                answer(&attempt.payload, 0, &[record("pile.test", 1, 60, &[10, 0, 0, 9])]);
            bad[at] ^= 1 << bit;
            let _ = resolver.handle_message(START, SOCKET, &bad);
            let _ = resolver.handle_message(START, SOCKET, &bad[..at]);
        }
    }
    assert!(resolver.handle_message(START, SOCKET, &good));
}
