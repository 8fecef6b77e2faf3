//! One answer on the control socket from those of several servers: rows behind each other, counts
//! added up. Pure. Called by `supervisor` when all servers that were asked have answered.

use serde_json::{Value, json};

use crate::control::Request;
use crate::moving::{MoveReport, SteerReport};
use crate::report::{CountRow, ProcessRow, SocketRow, Status};
use crate::roles::ProcessNumber;

/// Lines of JSON, one of each server.
pub type Answers = Vec<(ProcessNumber, Vec<u8>)>;

/// One answer; a refusal where one of them is and nothing can be said without it.
pub fn merge(request: &Request, answers: Answers) -> Value {
    let parsed = answers.into_iter().filter_map(|(_, line)| serde_json::from_slice(&line).ok());
    let mut answers: Vec<Value> = parsed.collect();
    if answers.is_empty() {
        return nonsense();
    }
    if answers.len() == 1 {
        return answers.remove(0);
    }
    if let Some(refused) = answers.iter().position(|answer| answer["ok"] != json!(true)) {
        return answers.remove(refused);
    }
    match request {
        Request::Status {} => typed(answers, merge_status),
        Request::Steer {} => typed(answers, merge_steering),
        Request::SteerMove { .. } => typed(answers, merge_moves),
        _ => answers.into_iter().reduce(join).unwrap_or_default(),
    }
}

/// Merges answers of one type; one that is not of the type is left out.
fn typed<T>(answers: Vec<Value>, merge: fn(T, T) -> T) -> Value
where
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    let parsed = answers.into_iter().filter_map(|answer| serde_json::from_value::<T>(answer).ok());
    match parsed.reduce(merge) {
        Some(whole) => crate::control::acceptance(whole),
        None => nonsense(),
    }
}

fn nonsense() -> Value {
    crate::control::refusal("the servers gave no answer that fits the question")
}

/// A listing of sockets as a server gives it.
#[derive(serde::Serialize, serde::Deserialize)]
struct Listed {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default)]
    sockets: Vec<SocketRow>,
}

/// One listing in order, a line of JSON. It may be long, so it does without [`Value`]s, which take ten times the room.
pub fn merge_listings(answers: Answers) -> Vec<u8> {
    let mut whole: Option<Listed> = None;
    for (_, line) in answers {
        let Ok(listed) = serde_json::from_slice::<Listed>(&line) else { continue };
        whole = Some(match whole {
            Some(whole) if whole.ok && listed.ok => {
                Listed { sockets: merge_sockets(whole.sockets, listed.sockets), ..whole }
            }
            Some(whole) if !whole.ok => whole,
            _ => listed,
        });
    }
    if let Some(whole) = &mut whole {
        whole.sockets.sort_unstable_by(|one, other| key(one).cmp(&key(other)));
    }
    let text = whole.and_then(|whole| serde_json::to_vec(&whole).ok());
    let mut text = text.unwrap_or_else(|| nonsense().to_string().into_bytes());
    text.push(b'\n');
    text
}

fn key(row: &SocketRow) -> [&str; 4] {
    [&row.protocol, &row.state, &row.local, row.remote.as_deref().unwrap_or_default()]
}

/// What is not known better: lists behind each other, everything else as the first says.
fn join(mut first: Value, other: Value) -> Value {
    if let (Value::Object(fields), Value::Object(others)) = (&mut first, other) {
        for (name, value) in others {
            match (fields.get_mut(&name), value) {
                (Some(Value::Array(rows)), Value::Array(more)) => rows.extend(more),
                (Some(_), _) => {}
                (None, value) => drop(fields.insert(name, value)),
            }
        }
    }
    first
}

fn merge_status(mut first: Status, other: Status) -> Status {
    first.servers.extend(other.servers);
    first.servers.sort_by_key(|row| row.server);
    if first.link.is_empty() {
        first.link = other.link;
    }
    if first.addresses.is_empty() {
        (first.addresses, first.network) = (other.addresses, other.network);
    }
    add_counts(&mut first.drops, other.drops);
    add_counts(&mut first.counters, other.counters);
    let memory = &mut first.memory;
    memory.unclaimed_bytes += other.memory.unclaimed_bytes;
    memory.stream_bytes += other.memory.stream_bytes;
    memory.sockets += other.memory.sockets;
    // A trust domain is known to every transport server.
    memory.domains = memory.domains.max(other.memory.domains);
    for row in other.processes {
        add_process(&mut first.processes, row);
    }
    first
}

fn add_counts(rows: &mut Vec<CountRow>, more: Vec<CountRow>) {
    for row in more {
        match rows.iter_mut().find(|known| known.name == row.name) {
            Some(known) => known.count += row.count,
            None => rows.push(row),
        }
    }
}

fn merge_steering(mut first: SteerReport, other: SteerReport) -> SteerReport {
    first.servers.extend(other.servers);
    first.servers.sort_by_key(|row| row.server);
    first
}

/// Servers are asked in turn, and a bucket may be with the last by then: that it has moved is said by who had it.
fn merge_moves(mut first: MoveReport, other: MoveReport) -> MoveReport {
    for row in other.moves {
        match first.moves.iter_mut().find(|known| known.bucket == row.bucket) {
            Some(known) if row.moved => *known = row,
            Some(_) => {}
            None => first.moves.push(row),
        }
    }
    first.moves.sort_by_key(|row| row.bucket);
    first
}

/// A process is attached to every transport server.
fn add_process(rows: &mut Vec<ProcessRow>, row: ProcessRow) {
    match rows.iter_mut().find(|known| known.pid == row.pid && known.pid != 0) {
        Some(known) => {
            known.sockets += row.sockets;
            known.offers += row.offers;
        }
        None => rows.push(row),
    }
}

/// A listener is open at every transport server: one row, with what waits at all of them. A server
/// that was started again does not know whose it is until its process speaks.
fn merge_sockets(mut first: Vec<SocketRow>, other: Vec<SocketRow>) -> Vec<SocketRow> {
    let is_listener = |row: &SocketRow| row.state == "LISTEN";
    let same = |a: &SocketRow, b: &SocketRow| {
        let owner =
            a.pid.is_none() || b.pid.is_none() || (a.pid, &a.program) == (b.pid, &b.program);
        owner && a.protocol == b.protocol && a.local == b.local
    };
    let mut listeners: Vec<usize> =
        (0..first.len()).filter(|at| is_listener(&first[*at])).collect();
    for row in other {
        let known = listeners.iter().position(|at| is_listener(&row) && same(&first[*at], &row));
        let Some(known) = known else {
            first.push(row);
            continue;
        };
        let known = &mut first[listeners.remove(known)];
        known.recv_queue += row.recv_queue;
        if known.pid.is_none() {
            (known.pid, known.program) = (row.pid, row.program);
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{acceptance, refusal};

    fn socket(state: &str, local: &str, waiting: u64) -> Value {
        json!({
            "protocol": "tcp", "state": state, "recv_queue": waiting, "send_queue": 1,
            "local": local, "remote": null, "pid": 7, "program": "p", "timer_ms": null,
        })
    }

    fn lines(answers: Vec<(ProcessNumber, Value)>) -> Answers {
        answers.into_iter().map(|(server, answer)| (server, answer.to_string().into())).collect()
    }

    fn one_of(request: &Request, answers: Vec<(ProcessNumber, Value)>) -> Value {
        merge(request, lines(answers))
    }

    #[test]
    fn a_listener_is_one_row_and_a_connection_each_its_own() {
        let one = json!([socket("LISTEN", "a:80", 2), socket("ESTAB", "a:80", 0)]);
        let other = json!([socket("LISTEN", "a:80", 3), socket("ESTAB", "a:80", 5)]);
        let answers = vec![
            (0, acceptance(json!({ "sockets": one }))),
            (1, acceptance(json!({ "sockets": other }))),
        ];
        let merged: Value = serde_json::from_slice(&merge_listings(lines(answers))).unwrap();
        let rows = merged["sockets"].as_array().unwrap();
        assert_eq!(rows.len(), 3, "{merged}");
        assert_eq!((&rows[2]["recv_queue"], &merged["ok"]), (&json!(5), &json!(true)));
        let answers = vec![(0, acceptance(json!({ "sockets": [] }))), (1, refusal("no"))];
        let refused: Value = serde_json::from_slice(&merge_listings(lines(answers))).unwrap();
        assert_eq!((&refused["ok"], &refused["error"]), (&json!(false), &json!("no")));
    }

    #[test]
    fn what_is_no_answer_is_left_out() {
        let good = acceptance(json!({ "rows": [1] })).to_string().into_bytes();
        let answers = vec![(0, b"nonsense".to_vec()), (1, good)];
        assert_eq!(merge(&Request::CaptureStop {}, answers)["rows"], json!([1]));
        let nothing = merge(&Request::CaptureStop {}, vec![(0, b"nonsense".to_vec())]);
        assert_eq!(nothing["ok"], json!(false));
        let nothing: Value = serde_json::from_slice(&merge_listings(Vec::new())).unwrap();
        assert_eq!(nothing["ok"], json!(false));
    }

    #[test]
    fn a_bucket_that_has_moved_is_not_there_already() {
        let moved = |bucket: u16, moved: bool| {
            let why = (!moved).then_some("it is there already");
            json!({
                "bucket": bucket, "from": 0, "to": 1, "moved": moved, "why": why, "connections": 1,
                "time_wait": 0, "bytes": 7, "us": 1,
            })
        };
        let request =
            Request::SteerMove { what: crate::moving::Selection::Bucket(3), to: 1, patience_ms: 1 };
        let answer = |rows: &[Value]| acceptance(json!({ "moves": rows }));
        for order in [[true, false], [false, true]] {
            let answers = order.map(|one| answer(&[moved(3, one)]));
            let merged = one_of(&request, vec![(0, answers[0].clone()), (1, answers[1].clone())]);
            assert_eq!(merged["moves"], json!([moved(3, true)]));
        }
        let answers = vec![(0, answer(&[moved(9, true)])), (1, answer(&[moved(3, false)]))];
        let merged = one_of(&request, answers);
        assert_eq!(merged["moves"], json!([moved(3, false), moved(9, true)]));
    }

    #[test]
    fn counts_are_added_and_servers_stand_in_order() {
        let status = |server: u32, link: &str, count: u64| {
            acceptance(json!({
                "version": "1", "pid": 1, "uptime_s": 9, "plan": "TS2LS2CM2", "link": link,
                "addresses": [], "network": crate::report::Network::default(),
                "host_addresses": [],
                "servers": [crate::report::ServerRow { server, ..Default::default() }],
                "drops": [{ "name": "x", "text": "y", "count": count }],
                "counters": [],
                "memory": crate::report::Memory::default(),
                "processes": [{ "pid": 5, "program": "p", "sockets": count, "offers": 1 }],
            }))
        };
        let answers = vec![(1, status(1, "tap", 2)), (0, status(0, "", 3))];
        let merged = one_of(&Request::Status {}, answers);
        assert_eq!(merged["servers"][0]["server"], 0, "{merged}");
        assert_eq!(merged["servers"][1]["server"], 1);
        assert_eq!((&merged["drops"][0]["count"], &merged["link"]), (&json!(5), &json!("tap")));
        assert_eq!(
            merged["processes"],
            json!([{ "pid": 5, "program": "p", "sockets": 5, "offers": 2 }])
        );
    }

    #[test]
    fn one_refusal_is_the_answer_and_unknown_answers_are_joined() {
        let stop = Request::CaptureStop {};
        let yes = || acceptance(json!({ "rows": [1], "first": 1 }));
        let merged = one_of(&stop, vec![(0, yes()), (1, refusal("no"))]);
        assert_eq!(merged["error"], "no");
        let other = acceptance(json!({ "rows": [2], "first": 2, "more": 3 }));
        let merged = one_of(&stop, vec![(0, yes()), (1, other)]);
        assert_eq!(merged, json!({ "ok": true, "rows": [1, 2], "first": 1, "more": 3 }));
    }
}
