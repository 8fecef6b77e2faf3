//! Where things are drawn, read back from the pictures.

use super::*;

fn lines(scales: [Scale; 2], points: Vec<(f64, f64)>) -> Plot {
    let mut plot = Plot::lines("a < b", "simulated", ["x", "y"], scales);
    plot.add("one & two", points);
    plot
}

/// Pixels of the corners of the first line.
fn corners(svg: &str) -> Vec<(f64, f64)> {
    let after = svg.split("<polyline points=\"").nth(1).expect("a line");
    let points = after.split('"').next().expect("its end");
    points
        .split(' ')
        .filter_map(|pair| pair.split_once(','))
        .map(|(x, y)| (x.parse().expect("x"), y.parse().expect("y")))
        .collect()
}

#[test]
fn equal_factors_are_equal_distances_on_a_logarithmic_axis() {
    let svg =
        lines([Scale::Log, Scale::Log], vec![(1.0, 10.0), (10.0, 100.0), (100.0, 1000.0)]).svg();
    let corners = corners(&svg);
    assert_eq!((corners[0].0, corners[2].0), (LEFT, WIDTH - RIGHT));
    assert!((corners[1].0 - (LEFT + WIDTH - RIGHT) / 2.0).abs() < 0.1, "{corners:?}");
    assert!(corners[0].1 > corners[1].1 && corners[1].1 > corners[2].1, "up is more");
}

#[test]
fn few_values_of_a_logarithmic_axis_are_named_themselves() {
    let servers = [1.0, 2.0, 4.0, 8.0, 16.0];
    let axis = Axis::over(Scale::Log, servers.to_vec(), [0.0, 600.0]);
    let names = |axis: &Axis| ticks(axis).into_iter().map(|one| one.1).collect::<Vec<_>>();
    assert_eq!(names(&axis), ["1", "2", "5", "10", "20"]);
    assert_eq!(names(&axis.at_values(servers.into_iter())), ["1", "2", "4", "8", "16"]);
    assert_eq!(axis.at_values([7.0, 7.01, 900.0].into_iter()), axis, "too near to be named");
}

#[test]
fn long_names_get_room_in_the_legend() {
    let mut plot = lines([Scale::Linear; 2], vec![(0.0, 1.0)]);
    assert_eq!(plot.legend_columns(), 3);
    plot.add("a balancing scheme with all that was said of it", vec![(0.0, 2.0)]);
    assert_eq!(plot.legend_columns(), 1);
}

#[test]
fn percentiles_spread_towards_the_tail() {
    let points = vec![(0.0, 1.0), (90.0, 1.0), (99.0, 2.0), (99.9, 3.0)];
    let corners = corners(&lines([Scale::Tail, Scale::Linear], points).svg());
    let gaps: Vec<f64> = corners.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps.iter().all(|gap| (gap - gaps[0]).abs() < 0.3), "{gaps:?}");
}

#[test]
fn what_an_axis_does_not_have_is_left_out() {
    let points = vec![(0.0, 1.0), (1.0, -1.0), (2.0, f64::NAN), (3.0, 5.0), (4.0, 8.0)];
    assert_eq!(corners(&lines([Scale::Linear, Scale::Log], points).svg()).len(), 3);
    let empty = lines([Scale::Log, Scale::Linear], Vec::new()).svg();
    assert!(empty.ends_with("</svg>\n"));
    let flat = lines([Scale::Linear, Scale::Linear], vec![(0.0, 0.0)]).svg();
    assert!(!flat.contains("NaN") && !flat.contains("inf"), "{flat}");
}

#[test]
fn names_are_escaped() {
    let svg = lines([Scale::Linear; 2], vec![(0.0, 1.0)]).svg();
    assert!(svg.contains("a &lt; b") && svg.contains("one &amp; two"));
}

#[test]
fn bars_and_areas_have_one_shape_for_each_value() {
    let mut plot = lines([Scale::Linear; 2], vec![(0.0, 1.0), (1.0, 2.0)]);
    plot.add("three", vec![(0.0, 3.0), (1.0, 4.0)]);
    plot.kind = Kind::Bars;
    plot.groups = vec!["first".into(), "second".into()];
    let bars = plot.svg();
    // The background, four bars, two in the legend.
    assert_eq!(bars.matches("<rect").count(), 1 + 4 + 2);
    assert!(bars.contains(">second</text>"));
    plot.kind = Kind::Stacked;
    assert_eq!(plot.svg().matches("<polygon").count(), 2);
}

#[test]
fn ticks_are_round_and_within_the_axis() {
    for (scale, values) in [
        (Scale::Linear, vec![0.0, 37.0]),
        (Scale::Linear, vec![-3.0, 0.02]),
        (Scale::Log, vec![3.0, 41_000.0]),
        (Scale::Log, vec![5.0, 6.0]),
        (Scale::Tail, vec![0.0, 99.9]),
    ] {
        let axis = Axis::over(scale, values.clone(), [0.0, 100.0]);
        let named = ticks(&axis);
        assert!((2..=14).contains(&named.len()), "{values:?}: {named:?}");
        assert!(named.iter().all(|(value, _)| axis.place(*value).is_some()), "{named:?}");
        assert!(values.iter().all(|value| axis.place(*value).is_some()), "{axis:?}");
    }
}
