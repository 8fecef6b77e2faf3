//! Axes: from values to pixels, and which values are named. Called by `plot`.

use super::Scale;
use crate::report::show;

/// One axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    pub scale: Scale,
    /// Values at both ends.
    pub range: [f64; 2],
    /// Pixels at both ends.
    pub pixels: [f64; 2],
    /// Values that are named instead of round ones.
    pub named: [Option<f64>; NAMED_MAX],
}

/// Values of an axis that are few enough to be named each.
const NAMED_MAX: usize = 12;
/// Least distance of two of them, pixels.
const NAMED_APART: f64 = 30.0;

/// Steps between ticks are these times a power of ten.
const STEPS: [f64; 4] = [1.0, 2.0, 5.0, 10.0];
/// Percentiles that are named.
const PERCENTILES: [f64; 8] = [0.0, 50.0, 80.0, 90.0, 95.0, 99.0, 99.9, 99.99];

impl Axis {
    /// An axis that holds all values, rounded outwards.
    pub fn over(scale: Scale, values: Vec<f64>, pixels: [f64; 2]) -> Axis {
        let usable = values.into_iter().filter(|value| match scale {
            Scale::Log => value.is_finite() && *value > 0.0,
            _ => value.is_finite(),
        });
        let ends = usable.fold(None, |ends: Option<[f64; 2]>, value| match ends {
            None => Some([value, value]),
            Some([low, high]) => Some([low.min(value), high.max(value)]),
        });
        let range = match (scale, ends) {
            (Scale::Log, Some([low, high])) => {
                let (low, high) = (outwards(low, false), outwards(high, true));
                if low < high { [low, high] } else { [low, low * 10.0] }
            }
            (Scale::Log, None) => [1.0, 10.0],
            (Scale::Tail, _) => [0.0, ends.map_or(99.9, |[_, high]| high.clamp(90.0, 99.99))],
            (Scale::Linear, Some([low, high])) => {
                let low = low.min(0.0);
                let step = step(high - low);
                [low, ((high / step).ceil() * step).max(low + step)]
            }
            (Scale::Linear, None) => [0.0, 1.0],
        };
        Axis { scale, range, pixels, named: [None; NAMED_MAX] }
    }

    /// A logarithmic axis of few values, numbers of servers above all, names these and ends with them.
    pub fn at_values(self, values: impl Iterator<Item = f64>) -> Axis {
        let mut values: Vec<f64> =
            values.filter(|value| value.is_finite() && *value > 0.0).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        let [Some(low), Some(high)] = [values.first(), values.last()].map(Option::<&f64>::copied)
        else {
            return self;
        };
        if self.scale != Scale::Log || values.len() > NAMED_MAX || low >= high {
            return self;
        }
        let mut axis = Axis { range: [low, high], ..self };
        let places: Vec<f64> = values.iter().filter_map(|value| axis.place(*value)).collect();
        if places.windows(2).any(|pair| pair[1] - pair[0] < NAMED_APART) {
            return self;
        }
        for (place, value) in axis.named.iter_mut().zip(values) {
            *place = Some(value);
        }
        axis
    }

    /// Where a value is; `None` for what the axis does not have.
    pub fn place(&self, value: f64) -> Option<f64> {
        let along = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log => value.ln(),
            Scale::Tail => -(1.0 - value / 100.0).max(1e-6).ln(),
        };
        let (low, high) = (along(self.range[0]), along(self.range[1]));
        let share = (along(value) - low) / (high - low);
        let inside = share.is_finite() && (-0.001..=1.001).contains(&share);
        inside.then(|| self.pixels[0] + share * (self.pixels[1] - self.pixels[0]))
    }
}

/// The next 1, 2 or 5 times a power of ten.
fn outwards(value: f64, up: bool) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let digit = value / power;
    let fits = |step: &&f64| if up { **step >= digit - 1e-9 } else { **step <= digit + 1e-9 };
    let step = if up { STEPS.iter().find(fits) } else { STEPS.iter().rev().find(fits) };
    step.unwrap_or(&1.0) * power
}

/// A step of ticks for a length.
fn step(length: f64) -> f64 {
    let rough = (length / 6.0).max(1e-12);
    let power = 10_f64.powf(rough.log10().floor());
    let digit = rough / power;
    STEPS.iter().find(|step| **step >= digit - 1e-9).unwrap_or(&10.0) * power
}

/// The values that are named, with their names.
pub(super) fn ticks(axis: &Axis) -> Vec<(f64, String)> {
    let [low, high] = axis.range;
    let values: Vec<f64> = match axis.scale {
        _ if axis.named[0].is_some() => axis.named.into_iter().flatten().collect(),
        Scale::Tail => PERCENTILES.into_iter().filter(|value| *value <= high).collect(),
        Scale::Linear => {
            let step = step(high - low);
            let first = (low / step).ceil();
            let count = ((high - low) / step + 1e-9) as usize;
            (0..=count).map(|number| (first + number as f64) * step).collect()
        }
        Scale::Log => {
            let decades = (high / low).log10();
            let wanted: &[f64] = if decades > 4.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let (from, to) = (low.log10().floor() as i32, high.log10().ceil() as i32);
            let all = (from..=to)
                .flat_map(|power| wanted.iter().map(move |step| step * 10_f64.powi(power)));
            all.filter(|value| (low * 0.999..=high * 1.001).contains(value)).collect()
        }
    };
    values.into_iter().map(|value| (value, name(value))).collect()
}

fn name(value: f64) -> String {
    let plain = format!("{}", (value * 1e4).round() / 1e4);
    if value.abs() >= 1000.0 { show(value) } else { plain }
}
