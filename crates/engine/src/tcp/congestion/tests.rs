//! Tests of what the congestion control algorithms share.

use super::*;

const MSS: u32 = 1448;

fn now() -> Instant {
    Instant::from_us(1_000_000)
}

fn started(control: CongestionControl) -> Congestion {
    let mut congestion = Congestion::new(control);
    congestion.start(MSS, false);
    congestion
}

#[test]
fn initial_window_follows_rfc_6928() {
    assert_eq!(initial_window(1448), 14_480);
    assert_eq!(initial_window(8948), 17_896);
    assert_eq!(initial_window(536), 5_360);
    let mut congestion = Congestion::new(CongestionControl::Cubic);
    congestion.start(MSS, true);
    assert_eq!(congestion.cwnd, MSS);
}

#[test]
fn slow_start_doubles_in_a_round_trip() {
    for control in [CongestionControl::Cubic, CongestionControl::NewReno] {
        let mut congestion = started(control);
        congestion.on_sent(1000, congestion.cwnd, MSS);
        let before = congestion.cwnd;
        congestion.on_ack(now(), 1000, before, MSS, 10_000);
        assert_eq!(congestion.cwnd, 2 * before);
    }
}

#[test]
fn unused_window_stays() {
    let mut congestion = started(CongestionControl::NewReno);
    congestion.on_sent(1000, MSS, MSS);
    congestion.on_ack(now(), 1000, MSS, MSS, 10_000);
    assert_eq!(congestion.cwnd, 10 * MSS);
}

#[test]
fn newreno_adds_a_segment_a_round_trip_and_halves() {
    let mut congestion = started(CongestionControl::NewReno);
    congestion.on_loss(20 * MSS, MSS);
    assert_eq!((congestion.cwnd, congestion.ssthresh), (10 * MSS, 10 * MSS));
    congestion.on_sent(u64::MAX, congestion.cwnd, MSS);
    for _ in 0..10 {
        congestion.on_ack(now(), 1, MSS, MSS, 10_000);
    }
    assert_eq!(congestion.cwnd, 11 * MSS);
}

#[test]
fn cubic_keeps_seven_tenths() {
    let mut congestion = started(CongestionControl::Cubic);
    congestion.on_loss(10 * MSS, MSS);
    assert_eq!(congestion.cwnd, 7 * MSS);
}

#[test]
fn lost_lone_segment_does_not_cost_cubic_its_window() {
    let mut congestion = started(CongestionControl::Cubic);
    congestion.cwnd = 40 * MSS;
    congestion.on_timeout(MSS, MSS, false);
    assert_eq!((congestion.cwnd, congestion.ssthresh), (MSS, 28 * MSS));
    let mut congestion = started(CongestionControl::Cubic);
    congestion.cwnd = 40 * MSS;
    congestion.on_loss(5 * MSS, MSS);
    assert_eq!((congestion.cwnd, congestion.ssthresh), (5 * MSS, 28 * MSS));
}

#[test]
fn threshold_is_set_once_for_repeated_timeouts() {
    let mut congestion = started(CongestionControl::NewReno);
    congestion.on_timeout(10 * MSS, MSS, false);
    assert_eq!((congestion.cwnd, congestion.ssthresh), (MSS, 5 * MSS));
    congestion.on_timeout(MSS, MSS, true);
    assert_eq!((congestion.cwnd, congestion.ssthresh), (MSS, 5 * MSS));
    congestion.on_timeout(MSS, MSS, false);
    assert_eq!(congestion.ssthresh, 2 * MSS);
}

#[test]
fn growth_after_a_timeout_is_a_segment_an_acknowledgement() {
    let mut congestion = started(CongestionControl::NewReno);
    congestion.on_timeout(10 * MSS, MSS, false);
    congestion.on_ack_in_loss(8 * MSS, MSS);
    assert_eq!(congestion.cwnd, 2 * MSS);
}

#[test]
fn pauses_halve_the_window_down_to_the_initial_one() {
    let mut congestion = started(CongestionControl::Cubic);
    congestion.cwnd = 80 * MSS;
    congestion.restart_after_idle(200_000, 300_000, MSS);
    assert_eq!(congestion.cwnd, 80 * MSS);
    congestion.restart_after_idle(400_000, 300_000, MSS);
    assert_eq!(congestion.cwnd, 40 * MSS);
    congestion.restart_after_idle(u64::MAX, 300_000, MSS);
    assert_eq!(congestion.cwnd, 10 * MSS);
}

#[test]
fn window_cannot_overflow() {
    for control in [CongestionControl::Cubic, CongestionControl::NewReno] {
        let mut congestion = started(control);
        congestion.on_loss(u32::MAX, MSS);
        congestion.on_sent(u64::MAX, u32::MAX, MSS);
        let mut now = now();
        for _ in 0..100 {
            now = now.plus_us(1_000_000_000);
            congestion.on_ack(now, 1, u32::MAX, MSS, u32::MAX);
            assert!(congestion.cwnd <= CWND_MAX);
        }
    }
}
