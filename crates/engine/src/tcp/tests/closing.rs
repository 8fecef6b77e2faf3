//! Closing: half close, both at once, resets in every state, TIME-WAIT.

use super::pair::{DELAY_US, Fate, Pair, Side, socket_id};
use crate::tcp::*;
use crate::{Close, SocketError, SocketOption};

#[test]
fn half_close_lets_the_other_side_go_on() {
    let mut pair = Pair::established();
    pair.write(Side::A, 10_000);
    pair.shutdown_send(Side::A);
    pair.run_for(200_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::FinWait2, State::CloseWait));
    assert!(pair.b.tcp().progress().rx_fin && !pair.b.tcp().progress().finished);
    pair.write(Side::B, 500_000);
    pair.run_for(2_000_000);
    pair.assert_delivered(Side::A);
    pair.assert_delivered(Side::B);
    pair.shutdown_send(Side::B);
    pair.run_for(200_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::TimeWait, State::Closed));
    assert!(matches!(pair.a.dispositions.last(), Some(Disposition::EnterTimeWait(Some(_)))));
    assert_eq!(pair.b.dispositions.last(), Some(&Disposition::Closed));
    let (a, b) = (pair.a.tcp().progress(), pair.b.tcp().progress());
    assert!(a.finished && b.finished && a.error.is_none() && b.error.is_none());
    assert_eq!(pair.a.tcp().next_timeout(), None);
}

#[test]
fn fin_rides_on_the_last_data() {
    let mut pair = Pair::established();
    pair.write(Side::A, 100);
    pair.shutdown_send(Side::A);
    pair.run_for(200_000);
    let sent = pair.occupying(Side::A);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].flags, Flags::FIN | Flags::PSH | Flags::ACK);
    assert_eq!(pair.a.tcp().progress().tx_acked, 100);
}

#[test]
fn fin_is_not_held_by_nagle_or_cork() {
    let mut pair = Pair::new();
    pair.a.options.set(SocketOption::Cork(true));
    pair.connect();
    pair.write(Side::A, 10);
    pair.flush();
    assert_eq!(pair.seen.len(), 0);
    pair.shutdown_send(Side::A);
    pair.flush();
    assert_eq!(pair.seen.len(), 1);
}

#[test]
fn simultaneous_close() {
    let mut pair = Pair::established();
    pair.shutdown_send(Side::A);
    pair.shutdown_send(Side::B);
    pair.run_for(DELAY_US);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Closing, State::Closing));
    pair.run_for(200_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::TimeWait, State::TimeWait));
}

#[test]
fn fins_that_cross_in_fin_wait_1_with_acknowledgement() {
    // B answers A's FIN with its own FIN and acknowledgement in one segment.
    let mut pair = Pair::established();
    pair.shutdown_send(Side::A);
    pair.flush();
    pair.set_fault(|_, side, index, _| match (side, index) {
        (Side::B, 0) => Fate::Drop,
        _ => Fate::Deliver,
    });
    pair.run_for(DELAY_US);
    pair.shutdown_send(Side::B);
    pair.run_for(2 * DELAY_US);
    assert_eq!((pair.a.state(), pair.b.state()), (State::TimeWait, State::Closed));
}

#[test]
fn graceful_close_on_both_sides() {
    let mut pair = Pair::established();
    pair.write(Side::A, 5000);
    pair.close(Side::A, Close::Graceful);
    pair.run_for(100_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::FinWait2, State::CloseWait));
    pair.close(Side::B, Close::Graceful);
    pair.run_for(100_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::TimeWait, State::Closed));
    assert_eq!(pair.a.tcp().progress().error, None);
}

#[test]
fn closing_over_unread_data_resets() {
    let mut pair = Pair::established();
    pair.b.reads = false;
    pair.write(Side::A, 100);
    pair.run_for(100_000);
    pair.close(Side::B, Close::Graceful);
    pair.run_for(DELAY_US);
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::ConnectionReset));
    assert_eq!(pair.a.dispositions.last(), Some(&Disposition::Reset));
}

#[test]
fn data_after_close_is_answered_with_reset() {
    let mut pair = Pair::established();
    pair.close(Side::B, Close::Graceful);
    pair.run_for(100_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::CloseWait, State::FinWait2));
    pair.write(Side::A, 100);
    pair.run_for(2 * DELAY_US);
    assert!(matches!(pair.b.dispositions.last(), Some(Disposition::Aborted(_))));
    assert_eq!((pair.a.state(), pair.b.state()), (State::Closed, State::Closed));
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::BrokenPipe));
}

#[test]
fn data_after_both_ways_are_shut_is_answered_with_reset() {
    let mut pair = Pair::established();
    let now = pair.now;
    pair.b.tcp().shutdown_receive(now);
    pair.write(Side::A, 100);
    pair.run_for(100_000);
    // Half of it alone: what comes is discarded.
    assert_eq!(pair.a.tcp().progress().tx_acked, 100);
    pair.shutdown_send(Side::B);
    pair.run_for(100_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::CloseWait, State::FinWait2));
    pair.write(Side::A, 100);
    pair.run_for(2 * DELAY_US);
    assert!(matches!(pair.b.dispositions.last(), Some(Disposition::Aborted(_))));
    assert_eq!(pair.b.tcp().progress().error, Some(SocketError::ConnectionReset));
    assert_eq!((pair.a.state(), pair.b.state()), (State::Closed, State::Closed));
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::BrokenPipe));
}

#[test]
fn orphan_in_fin_wait_2_disappears_after_a_minute() {
    let mut pair = Pair::established();
    pair.close(Side::A, Close::Graceful);
    pair.run_for(59_000_000);
    assert_eq!(pair.a.state(), State::FinWait2);
    pair.run_for(2_000_000);
    assert_eq!(pair.a.state(), State::Closed);
    assert_eq!(pair.a.timer_outcomes, [TimerOutcome::Closed(None)]);
}

#[test]
fn half_closed_owner_may_wait_for_ever() {
    let mut pair = Pair::established();
    pair.shutdown_send(Side::A);
    pair.run_for(1_000_000_000);
    assert_eq!(pair.a.state(), State::FinWait2);
    pair.close(Side::A, Close::Graceful);
    pair.run_for(61_000_000);
    assert_eq!(pair.a.state(), State::Closed);
}

#[test]
fn orphan_gives_up_earlier_than_a_held_connection() {
    let mut pair = Pair::established();
    pair.write(Side::A, 100);
    pair.close(Side::A, Close::Graceful);
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.run_for(230_000_000);
    assert_eq!(pair.a.state(), State::Closed);
}

#[test]
fn orphan_does_not_wait_for_ever_for_a_window() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(8 * 1448));
    pair.connect();
    pair.b.reads = false;
    pair.write(Side::A, 50_000);
    pair.close(Side::A, Close::Graceful);
    pair.run_for(100_000_000);
    assert_eq!(pair.a.state(), State::FinWait1);
    pair.run_for(300_000_000);
    assert_eq!(pair.a.state(), State::Closed);
}

#[test]
fn abort_resets_the_peer() {
    let mut pair = Pair::established();
    pair.write(Side::A, 100_000);
    pair.flush();
    pair.close(Side::A, Close::Abort);
    assert_eq!(pair.a.state(), State::Closed);
    pair.run_for(100_000);
    assert_eq!(pair.b.tcp().progress().error, Some(SocketError::ConnectionReset));
    assert!(pair.b.tcp().progress().finished);
}

/// Brings side A of a fresh pair into a state.
fn pair_in(state: State) -> Pair {
    let mut pair = Pair::new();
    match state {
        State::SynSent => {
            pair.open(Side::A);
            pair.flush();
            return pair;
        }
        State::SynReceived => {
            pair.open(Side::A);
            pair.open(Side::B);
            pair.run_for(DELAY_US);
            assert_eq!(pair.a.state(), state);
            return pair;
        }
        _ => pair.connect(),
    }
    let drop_answers = |pair: &mut Pair| {
        pair.set_fault(|_, side, _, _| if side == Side::B { Fate::Drop } else { Fate::Deliver });
    };
    match state {
        State::FinWait1 => {
            drop_answers(&mut pair);
            pair.shutdown_send(Side::A);
        }
        State::FinWait2 => pair.shutdown_send(Side::A),
        State::CloseWait => pair.shutdown_send(Side::B),
        State::Closing => {
            pair.shutdown_send(Side::A);
            pair.shutdown_send(Side::B);
            pair.flush();
            drop_answers(&mut pair);
        }
        State::LastAck => {
            pair.shutdown_send(Side::B);
            pair.run_for(2 * DELAY_US);
            drop_answers(&mut pair);
            pair.shutdown_send(Side::A);
        }
        _ => {}
    }
    pair.run_for(3 * DELAY_US);
    assert_eq!(pair.a.state(), state);
    pair.set_fault(|_, _, _, _| Fate::Deliver);
    pair
}

const LIVE_STATES: [State; 8] = [
    State::SynSent,
    State::SynReceived,
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::CloseWait,
    State::Closing,
    State::LastAck,
];

/// Gives side A a segment from nowhere; what it says comes back.
fn inject(pair: &mut Pair, outgoing: &Outgoing) -> Disposition {
    let mut bytes = vec![0; 100];
    let len = outgoing.emit(80, 40_000, &mut bytes, |payload| payload.fill(7));
    let segment = Segment::parse(&bytes[..len]).unwrap();
    let host = &mut pair.a;
    let connection = host.connection.as_mut().unwrap();
    let (memory, counters) = (&mut host.memory, &mut host.counters);
    connection.handle_segment(pair.now, socket_id(), &segment, memory, counters)
}

/// The next sequence number A expects, and the one it sends next.
fn expected_by_a(pair: &mut Pair) -> (SeqNumber, SeqNumber) {
    let record = pair.a.tcp().time_wait_record();
    (record.rcv_nxt, record.snd_nxt)
}

#[test]
fn reset_in_every_state() {
    for state in LIVE_STATES {
        let mut pair = pair_in(state);
        let (seq, ack) = expected_by_a(&mut pair);
        let flags = Flags::RST | Flags::ACK;
        let exact = Outgoing { seq, ack, flags, ..Outgoing::default() };
        let beside = Outgoing { seq: seq + 1, ..exact };
        let outside = Outgoing { seq: seq + 10_000_000, ..exact };
        if state != State::SynSent {
            assert_eq!(inject(&mut pair, &beside), Disposition::Continue, "{state:?}");
            let now = pair.now;
            assert_eq!(pair.a.state(), state);
            let owes = pair.a.tcp().wants_transmit(now);
            assert!(owes, "challenge in {state:?}");
            assert_eq!(inject(&mut pair, &outside), Disposition::Continue, "{state:?}");
            assert_eq!(pair.a.state(), state);
        }
        assert_eq!(inject(&mut pair, &exact), Disposition::Reset, "{state:?}");
        let error = match state {
            State::SynSent | State::SynReceived => SocketError::ConnectionRefused,
            State::CloseWait => SocketError::BrokenPipe,
            _ => SocketError::ConnectionReset,
        };
        assert_eq!(pair.a.tcp().progress().error, Some(error), "{state:?}");
        assert_eq!(pair.a.state(), State::Closed);
        let now = pair.now;
        assert_eq!(pair.a.tcp().next_timeout(), None);
        assert_eq!(pair.a.tcp().poll_segment(now, &mut TcpCounters::default()), None);
    }
}

#[test]
fn syn_in_every_synchronised_state_is_challenged() {
    for state in &LIVE_STATES[2..] {
        let mut pair = pair_in(*state);
        let (seq, _) = expected_by_a(&mut pair);
        for at in [seq, seq + 100, seq + 10_000_000] {
            let syn = Outgoing { seq: at, flags: Flags::SYN, ..Outgoing::default() };
            assert_eq!(inject(&mut pair, &syn), Disposition::Continue, "{state:?}");
            assert_eq!(pair.a.state(), *state);
        }
        let now = pair.now;
        assert!(pair.a.tcp().wants_transmit(now));
    }
}

#[test]
fn abort_in_every_state() {
    for state in LIVE_STATES {
        let mut pair = pair_in(state);
        let (_, ours) = expected_by_a(&mut pair);
        let now = pair.now;
        let reset = pair.a.tcp().close(now, Close::Abort);
        let silent = matches!(state, State::SynSent | State::Closing | State::LastAck);
        assert_eq!(reset.is_none(), silent, "{state:?}");
        if let Some(reset) = reset {
            assert_eq!(reset.seq, ours, "{state:?}");
        }
        assert_eq!(pair.a.state(), State::Closed);
        assert_eq!(pair.a.tcp().close(now, Close::Abort), None);
    }
}

#[test]
fn segments_without_acknowledgement_do_nothing() {
    for state in &LIVE_STATES[2..] {
        let mut pair = pair_in(*state);
        let (seq, _) = expected_by_a(&mut pair);
        for flags in [Flags::NONE, Flags::FIN, Flags::PSH | Flags::URG] {
            let bare = Outgoing { seq, flags, payload_len: 10, ..Outgoing::default() };
            assert_eq!(inject(&mut pair, &bare), Disposition::Continue);
            assert_eq!(pair.a.state(), *state);
        }
        assert_eq!(pair.a.counters.drop_no_ack, 3);
    }
}

#[test]
fn time_wait_acknowledges_a_repeated_fin_and_ignores_resets() {
    let mut pair = Pair::established();
    pair.shutdown_send(Side::A);
    pair.run_for(3 * DELAY_US);
    // A's last acknowledgement is lost.
    pair.set_fault(|_, side, index, _| match (side, index) {
        (Side::A, 0) => Fate::Drop,
        _ => Fate::Deliver,
    });
    pair.shutdown_send(Side::B);
    pair.run_for(100_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::TimeWait, State::LastAck));
    pair.run_for(1_000_000);
    assert_eq!(pair.b.state(), State::Closed);
    let mut record = pair.a.time_wait.unwrap();
    let now = pair.now;
    let reset = Outgoing {
        seq: record.rcv_nxt,
        flags: Flags::RST,
        ack: record.snd_nxt,
        ..Default::default()
    };
    let mut bytes = vec![0; 60];
    let len = reset.emit(80, 40_000, &mut bytes, |_| {});
    let segment = Segment::parse(&bytes[..len]).unwrap();
    assert_eq!(record.handle_segment(now, &segment), TimeWaitAnswer::Ignore);
}

#[test]
fn time_wait_is_reused_by_a_newer_syn_only() {
    let mut pair = Pair::established();
    pair.shutdown_send(Side::A);
    pair.run_for(3 * DELAY_US);
    pair.shutdown_send(Side::B);
    pair.run_for(3 * DELAY_US);
    let record = pair.a.time_wait.unwrap();
    let now = pair.now;
    let answer = |seq: SeqNumber, value: Option<u32>, flags: Flags| {
        let timestamps = value.map(|value| Timestamps { value, echo: 0 });
        let options = Options { timestamps, ..Options::default() };
        let syn = Outgoing { seq, flags, options, ..Outgoing::default() };
        let mut bytes = vec![0; 60];
        let len = syn.emit(80, 40_000, &mut bytes, |_| {});
        record.clone().handle_segment(now, &Segment::parse(&bytes[..len]).unwrap())
    };
    let reuse = TimeWaitAnswer::Reuse { snd_nxt: record.snd_nxt };
    let recent = record.ts_recent.unwrap();
    let newer = record.rcv_nxt + 10;
    let older = SeqNumber::new(record.rcv_nxt.value().wrapping_sub(1000));
    assert_eq!(answer(newer, Some(recent), Flags::SYN), reuse);
    assert_eq!(answer(older, Some(recent + 1), Flags::SYN), reuse);
    assert_eq!(answer(newer, None, Flags::SYN), reuse);
    for refused in [
        answer(older, Some(recent), Flags::SYN),
        answer(newer, Some(recent - 1), Flags::SYN),
        answer(newer, Some(recent + 1), Flags::SYN | Flags::ACK),
    ] {
        assert!(matches!(refused, TimeWaitAnswer::Acknowledge { restart: false, .. }));
    }
    assert_eq!(answer(record.rcv_nxt, None, Flags::ACK), TimeWaitAnswer::Ignore);
}

#[test]
fn new_connection_over_time_wait() {
    let mut pair = Pair::established();
    pair.shutdown_send(Side::B);
    pair.run_for(3 * DELAY_US);
    pair.shutdown_send(Side::A);
    pair.run_for(3 * DELAY_US);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Closed, State::TimeWait));
    pair.run_for(1_000_000);
    pair.a.iss = pair.a.iss + 1_000_000;
    pair.a.memory = Default::default();
    pair.a.memory.limit = usize::MAX;
    pair.b.memory.received.clear();
    pair.open(Side::A);
    pair.run_for(10 * DELAY_US);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Established, State::Established));
    pair.write(Side::A, 10_000);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
}

#[test]
fn fin_just_behind_the_window_is_taken() {
    let mut pair = Pair::new();
    pair.b.limits.receive_buffer_max = 4096;
    pair.b.reads = false;
    pair.connect();
    pair.a.memory.sent = vec![3; 5000];
    let (rcv_nxt, snd_nxt) = {
        let record = pair.a.tcp().time_wait_record();
        (record.rcv_nxt, record.snd_nxt)
    };
    let whole = Outgoing {
        seq: snd_nxt,
        ack: rcv_nxt,
        flags: Flags::FIN | Flags::ACK,
        window: 100,
        payload_len: 4096,
        ..Outgoing::default()
    };
    pair.put_on_wire(Side::A, &whole);
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.state(), State::CloseWait);
    assert_eq!(pair.b.tcp().info(pair.now).receive_window, 0);
    assert_eq!(pair.b.tcp().info(pair.now).receive_queue, 4096);
}
