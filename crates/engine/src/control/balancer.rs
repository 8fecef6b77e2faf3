//! To whom the next connection goes: the applications of this connection manager against the
//! *offers* of the others (PIKA paper, section 3.3 and figure 2).
//!
//! Pure choices over costs: [`choose`] draws among those that the scheme lets compete. Who is local,
//! what each costs and who has room is the business of `queue`. Weights are 1/s for local
//! applications and 1/(tariff * s) for offers, s being the cost.

use std::str::FromStr;

use super::estimator::EstimatorKind;
use crate::random::Random;

/// How local applications and offers compete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// They do not: connections stay local.
    Naive,
    /// All in one round.
    Unfiltered,
    /// One round; only with offers that beat the best local application in spite of the tariff.
    Filtered,
    /// Three rounds: among the local ones, among the offers that pass the filter, between the two
    /// winners. How many offers there are does not matter then.
    #[default]
    Tournament,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Scheme; 4] =
        [Scheme::Naive, Scheme::Unfiltered, Scheme::Filtered, Scheme::Tournament];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Naive => "naive",
            Scheme::Unfiltered => "unfiltered",
            Scheme::Filtered => "filtered",
            Scheme::Tournament => "tournament",
        }
    }
}

impl FromStr for Scheme {
    type Err = ();

    fn from_str(text: &str) -> Result<Scheme, ()> {
        Scheme::ALL.into_iter().find(|scheme| scheme.name() == text).ok_or(())
    }
}

/// What can be chosen about balancing, at any time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    /// The scheme.
    pub scheme: Scheme,
    /// By how much an offer is made dearer than it is, 1 to 1000; 2 in the paper.
    pub tariff: f64,
    /// The estimator.
    pub estimator: EstimatorKind,
    /// The tournament lets an offer in once it is this much better than the best local application,
    /// tariff included.
    pub high_watermark: f64,
    /// And keeps it until it is no more this much "better".
    pub low_watermark: f64,
}

impl Default for Balance {
    fn default() -> Balance {
        Balance {
            scheme: Scheme::default(),
            tariff: 2.0,
            estimator: EstimatorKind::default(),
            high_watermark: 1.1,
            low_watermark: 0.9,
        }
    }
}

/// The largest tariff.
pub const TARIFF_MAX: f64 = 1000.0;

impl Balance {
    /// Whether the numbers make sense.
    pub fn is_sound(&self) -> bool {
        (1.0..=TARIFF_MAX).contains(&self.tariff)
            && (0.1..=10.0).contains(&self.low_watermark)
            && (self.low_watermark..=10.0).contains(&self.high_watermark)
    }

    /// Whether an offer competes: `best_us` is the cost of the best local application, `passed`
    /// whether it has competed until now.
    pub fn passes(&self, best_us: u32, offer_us: u32, passed: bool) -> bool {
        let ratio = f64::from(best_us) / (self.tariff * f64::from(offer_us.max(1)));
        match self.scheme {
            Scheme::Naive => false,
            Scheme::Unfiltered => true,
            Scheme::Filtered => ratio > 1.0,
            Scheme::Tournament if passed => ratio >= self.low_watermark,
            Scheme::Tournament => ratio >= self.high_watermark,
        }
    }
}

/// What the local applications bring into the competition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Local {
    /// The sum of their weights, 1/s each.
    pub weight: f64,
    /// The cost of the one that would get the connection.
    pub winner_us: u32,
}

/// Draws: `Some(n)`: the offer of place n; `None`: a local application. `offers` are the places and
/// costs of those that compete.
pub fn choose(
    balance: &Balance,
    local: Option<Local>,
    offers: impl Iterator<Item = (usize, u32)> + Clone,
    random: &mut Random,
) -> Option<usize> {
    let weight = |cost_us: u32| 1.0 / (balance.tariff * f64::from(cost_us.max(1)));
    let total: f64 = offers.clone().map(|(_, cost)| weight(cost)).sum();
    if total == 0.0 {
        return None;
    }
    let Some(local) = local else { return draw(offers, weight, total * random.fraction()) };
    if balance.scheme != Scheme::Tournament {
        let at = (total + local.weight) * random.fraction();
        return if at < total { draw(offers, weight, at) } else { None };
    }
    let winner = draw(offers.clone(), weight, total * random.fraction())?;
    let (_, cost) = offers.clone().find(|(place, _)| *place == winner)?;
    let (ours, theirs) = (1.0 / f64::from(local.winner_us.max(1)), weight(cost));
    (random.fraction() * (ours + theirs) < theirs).then_some(winner)
}

/// The one at `at` on the line of weights; the last one if rounding leads beyond it.
fn draw(
    offers: impl Iterator<Item = (usize, u32)>,
    weight: impl Fn(u32) -> f64,
    mut at: f64,
) -> Option<usize> {
    let mut last = None;
    for (place, cost) in offers {
        last = Some(place);
        at -= weight(cost);
        if at < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests;
