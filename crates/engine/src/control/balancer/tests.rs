//! The schemes' shares against their formulas, filters and watermarks, and the numbers users write.

use super::*;

/// The part of connections that stay local, of many.
fn local_share(scheme: Scheme, local_us: u32, offers: &[u32]) -> f64 {
    let balance = Balance { scheme, ..Balance::default() };
    let local = Local { weight: 1.0 / f64::from(local_us), winner_us: local_us };
    let passing: Vec<(usize, u32)> = offers
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, cost)| balance.passes(local_us, *cost, false))
        .collect();
    let mut random = Random::new(42);
    let rounds = 40_000;
    let stay = (0..rounds)
        .filter(|_| choose(&balance, Some(local), passing.iter().copied(), &mut random).is_none());
    stay.count() as f64 / f64::from(rounds)
}

fn near(share: f64, expected: f64) {
    assert!((share - expected).abs() < 0.01, "{share}, not {expected}");
}

#[test]
fn shares_are_those_of_the_paper() {
    for others in [1, 3, 7] {
        let offers = vec![1000; others];
        let n = others as f64;
        near(local_share(Scheme::Naive, 3000, &offers), 1.0);
        near(local_share(Scheme::Tournament, 3000, &offers), 0.4);
        near(local_share(Scheme::Filtered, 3000, &offers), 1.0 / (1.0 + 1.5 * n));
        near(local_share(Scheme::Tournament, 1000, &offers), 1.0);
        near(local_share(Scheme::Filtered, 1000, &offers), 1.0);
        near(local_share(Scheme::Unfiltered, 1000, &offers), 1.0 / (1.0 + 0.5 * n));
    }
}

#[test]
fn offers_among_themselves_weigh_by_their_speed() {
    let balance = Balance::default();
    let offers = [(3, 1000), (5, 3000)];
    let mut random = Random::new(1);
    let mut hits = [0; 2];
    for _ in 0..40_000 {
        match choose(&balance, None, offers.into_iter(), &mut random) {
            Some(3) => hits[0] += 1,
            Some(5) => hits[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    near(f64::from(hits[0]) / 40_000.0, 0.75);
    assert_eq!(choose(&balance, None, [].into_iter(), &mut random), None);
}

#[test]
fn the_filter_has_two_marks() {
    let balance = Balance::default();
    let offer = |ratio: f64| (1000.0 / 2.0 / ratio) as u32;
    assert!(!balance.passes(1000, offer(1.05), false) && balance.passes(1000, offer(1.15), false));
    assert!(balance.passes(1000, offer(0.95), true) && !balance.passes(1000, offer(0.85), true));
    let filtered = Balance { scheme: Scheme::Filtered, ..balance };
    assert!(filtered.passes(1000, offer(1.05), false) && !filtered.passes(1000, offer(0.95), true));
}

#[test]
fn words_and_numbers_of_users() {
    for scheme in Scheme::ALL {
        assert_eq!(scheme.name().parse(), Ok(scheme));
    }
    for kind in EstimatorKind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
    }
    assert_eq!("best".parse::<Scheme>(), Err(()));
    let sound = Balance::default();
    assert!(sound.is_sound());
    for tariff in [0.5, f64::NAN, f64::INFINITY, TARIFF_MAX * 2.0] {
        assert!(!Balance { tariff, ..sound }.is_sound());
    }
    assert!(!Balance { low_watermark: 2.0, ..sound }.is_sound());
}
