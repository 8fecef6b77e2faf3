//! What a cookie keeps, for how long, and for whom.

use super::*;
use crate::tcp::Timestamps;
use proptest::prelude::*;

const NOW: Instant = Instant::from_us(1_000 * PERIOD_US + 7);

fn keys() -> Keys {
    Keys::new(&[7; 32])
}

fn flow(remote: &str) -> FlowKey {
    let local = "198.18.0.1:80".parse().expect("address");
    FlowKey::new(local, remote.parse().expect("address"))
}

fn segment(seq: u32, ack: u32, flags: Flags, options: Options) -> Segment<'static> {
    Segment {
        source_port: 4000,
        destination_port: 80,
        seq: SeqNumber::new(seq),
        ack: SeqNumber::new(ack),
        flags,
        window: 1000,
        urgent: 0,
        options,
        payload: &[],
        segment_size: 0,
    }
}

fn syn(seq: u32, options: Options) -> Segment<'static> {
    kept_of_syn(&segment(seq, 0, Flags::SYN, options), false)
}

fn stamps(value: u32, echo: u32) -> Option<Timestamps> {
    Some(Timestamps { value, echo })
}

fn full_options() -> Options {
    let timestamps = stamps(77, 0);
    Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps,
        ..Options::default()
    }
}

/// The acknowledgement that a peer sends on our answer to its SYN.
fn answer(kept: &Segment<'_>, sent_at: Instant, clock: u32) -> Segment<'static> {
    let iss = initial_sequence(&keys(), sent_at, &flow("10.0.0.2:4000"), kept);
    let echo = stamped(clock, &kept.options);
    let timestamps = kept.options.timestamps.and_then(|own| stamps(own.value + 5, echo));
    let options = Options { timestamps, ..Options::default() };
    segment((kept.seq + 1).value(), (iss + 1).value(), Flags::ACK, options)
}

fn recalled(now: Instant, ack: &Segment<'_>) -> Option<(SeqNumber, Segment<'static>)> {
    match recall(&keys(), now, &flow("10.0.0.2:4000"), ack) {
        Recalled::Handshake { iss, syn } => Some((iss, syn)),
        Recalled::Ahead | Recalled::Nothing => None,
    }
}

proptest! {
    #[test]
    fn what_is_kept_comes_back(
        seq: u32,
        clock: u32,
        mss in prop::option::of(any::<u16>()),
        window_scale in prop::option::of(0_u8..=14),
        sack_permitted: bool,
        with_timestamps: bool,
        at_us in 0_u64..1 << 50,
        later_us in 0_u64..PERIOD_US,
    ) {
        let timestamps = stamps(9, 0).filter(|_| with_timestamps);
        let offered = Options { mss, window_scale, sack_permitted, timestamps, ..Options::default() };
        let (sent_at, later) = (Instant::from_us(at_us), Instant::from_us(at_us + later_us));
        let ack = answer(&syn(seq, offered), sent_at, clock);
        let (iss, kept) = recalled(later, &ack).expect("a good cookie");
        prop_assert_eq!((iss + 1, kept.seq.value()), (ack.ack, seq));
        let asked = mss.filter(|&mss| mss > 0).unwrap_or(536);
        let kept_mss = kept.options.mss.expect("always kept");
        prop_assert!(kept_mss <= asked.max(48), "{kept_mss} of {asked}");
        prop_assert_eq!(kept.options.window_scale, window_scale.filter(|_| with_timestamps));
        prop_assert_eq!(kept.options.sack_permitted, sack_permitted && with_timestamps);
        prop_assert_eq!(kept.options.timestamps, ack.options.timestamps);
    }

    /// Also where the clock wraps: what is told lies behind it, and by less than 32 ms.
    #[test]
    fn stamps_lie_a_little_behind_the_clock(
        clock in prop_oneof![any::<u32>(), 0_u32..64, u32::MAX - 64..=u32::MAX],
        window_scale in prop::option::of(0_u8..=14),
        sack_permitted: bool,
    ) {
        let kept = Options { window_scale, sack_permitted, ..Options::default() };
        let value = stamped(clock, &kept);
        prop_assert!(clock.wrapping_sub(value) <= STAMP_MASK);
        prop_assert_eq!((value & STAMP_MASK) as u8, stamp_of(&kept));
    }

    /// A number drawn at random is taken with a chance of 2^-28, and these are 2^12 in all: a failure
    /// once in 65,536 such runs would be none.
    #[test]
    fn guesses_are_refused(guesses in prop::collection::vec(any::<(u32, u32, u32)>(), 16)) {
        for (seq, ack, echo) in guesses {
            let options = Options { timestamps: stamps(1, echo), ..Options::default() };
            prop_assert!(recalled(NOW, &segment(seq, ack, Flags::ACK, options)).is_none());
        }
    }
}

#[test]
fn a_cookie_lives_for_one_to_two_periods() {
    for phase_us in [0, 1, PERIOD_US / 2, PERIOD_US - 1] {
        let sent_at = Instant::from_us(500 * PERIOD_US + phase_us);
        let ack = answer(&syn(5, full_options()), sent_at, 1000);
        let end_us = 502 * PERIOD_US;
        assert!(recalled(Instant::from_us(end_us - 1), &ack).is_some(), "{phase_us}");
        for late_us in [0, 1, PERIOD_US, 2 * PERIOD_US, 100 * PERIOD_US] {
            assert!(recalled(Instant::from_us(end_us + late_us), &ack).is_none(), "{phase_us}");
        }
        assert!(sent_at.plus_us(LIFE_US) >= Instant::from_us(end_us));
    }
}

#[test]
fn the_first_period_has_none_before_it() {
    let now = Instant::from_us(3);
    let ack = answer(&syn(5, full_options()), now, 1000);
    assert!(recalled(now, &ack).is_some());
    let other = Segment { ack: SeqNumber::new(ack.ack.value() ^ 1), ..ack };
    assert!(recalled(now, &other).is_none());
}

#[test]
fn a_cookie_is_of_its_flow_and_handshake() {
    let ack = answer(&syn(5, full_options()), NOW, 1000);
    assert!(recalled(NOW, &ack).is_some());
    for other in ["10.0.0.3:4000", "10.0.0.2:4001", "[2001:db8::1]:4000"] {
        let recalled = recall(&keys(), NOW, &flow(other), &ack);
        assert_eq!(recalled, Recalled::Nothing, "{other}");
    }
    let elsewhere =
        FlowKey::new("198.18.0.1:81".parse().unwrap(), "10.0.0.2:4000".parse().unwrap());
    assert_eq!(recall(&keys(), NOW, &elsewhere, &ack), Recalled::Nothing);
    let stranger = Keys::new(&[8; 32]);
    let own = flow("10.0.0.2:4000");
    assert_eq!(recall(&stranger, NOW, &own, &ack), Recalled::Nothing);
    // What follows it tells its flow and nothing more.
    for further in [1, 1460, 1 << 20, u32::MAX] {
        let later = Segment { seq: ack.seq + further, ..ack };
        assert_eq!(recall(&keys(), NOW, &own, &later), Recalled::Ahead, "{further}");
    }
}

#[test]
fn nothing_that_is_told_can_be_changed() {
    let ack = answer(&syn(5, full_options()), NOW, 1000);
    for bit in 0..32 {
        let changed = SeqNumber::new((ack.ack.value() - 1) ^ 1 << bit) + 1;
        assert!(recalled(NOW, &Segment { ack: changed, ..ack }).is_none(), "bit {bit}");
    }
    let echo = ack.options.timestamps.expect("both have them").echo;
    for bit in 0..5 {
        let options = Options { timestamps: stamps(1, echo ^ 1 << bit), ..ack.options };
        assert!(recalled(NOW, &Segment { options, ..ack }).is_none(), "bit {bit}");
    }
    // A way that takes the timestamps off would leave each side its own idea of the window.
    assert!(recalled(NOW, &Segment { options: Options::default(), ..ack }).is_none());
    let bare = answer(&syn(5, Options::default()), NOW, 1000);
    assert!(recalled(NOW, &bare).is_some());
    let options = Options { timestamps: stamps(1, 1), ..Options::default() };
    assert!(recalled(NOW, &Segment { options, ..bare }).is_none());
}

#[test]
fn classes_are_in_order_and_start_at_the_least() {
    assert!(MSS_CLASSES.is_sorted());
    assert_eq!(MSS_CLASSES.map(class_of), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!([0, 47, 535, 1459, u16::MAX].map(class_of), [0, 0, 1, 5, 7]);
    let none = segment(1, 0, Flags::SYN, Options::default());
    assert_eq!(kept_of_syn(&none, false).options.mss, Some(536));
    assert_eq!(kept_of_syn(&none, true).options.mss, Some(1220));
}
