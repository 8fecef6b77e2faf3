//! How connections are balanced, as users write it: in the file, on the command line, and to a running
//! service. Called by `config` and by `balance`.

use haypile_engine::control::balancer::{Balance, Scheme};
use haypile_engine::control::estimator::EstimatorKind;
use serde::{Deserialize, Serialize};

use super::Flags;
use crate::error::Error;

/// The table `[balance]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileBalance {
    scheme: Option<String>,
    tariff: Option<f64>,
    estimator: Option<String>,
    high_watermark: Option<f64>,
    low_watermark: Option<f64>,
}

impl FileBalance {
    pub(super) fn into_balance(self, flags: &Flags) -> Result<Balance, Error> {
        let change = BalanceChange {
            scheme: flags.scheme.clone().or(self.scheme),
            tariff: flags.tariff.or(self.tariff),
            estimator: flags.estimator.clone().or(self.estimator),
            high_watermark: self.high_watermark,
            low_watermark: self.low_watermark,
        };
        change.apply(Balance::default())
    }
}

/// What is to be different about balancing; nothing that is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceChange {
    /// The scheme, by its name.
    pub scheme: Option<String>,
    /// The tariff.
    pub tariff: Option<f64>,
    /// The estimator, by its name.
    pub estimator: Option<String>,
    /// Where an offer is let in.
    pub high_watermark: Option<f64>,
    /// Where it is sent away again.
    pub low_watermark: Option<f64>,
}

impl BalanceChange {
    /// Whether nothing is to be different.
    pub fn is_empty(&self) -> bool {
        *self == BalanceChange::default()
    }

    /// The change that makes `balance` of anything.
    pub fn all_of(balance: &Balance) -> BalanceChange {
        BalanceChange {
            scheme: Some(balance.scheme.name().into()),
            tariff: Some(balance.tariff),
            estimator: Some(balance.estimator.name().into()),
            high_watermark: Some(balance.high_watermark),
            low_watermark: Some(balance.low_watermark),
        }
    }

    /// `balance` with the change.
    ///
    /// # Errors
    /// Which word or number is wrong, and what is right.
    pub fn apply(&self, balance: Balance) -> Result<Balance, Error> {
        let scheme = self.scheme.as_deref().map(|word| {
            let names = Scheme::ALL.map(Scheme::name);
            word.parse().map_err(|()| unknown_word("balance scheme", word, &names))
        });
        let estimator = self.estimator.as_deref().map(|word| {
            let names = EstimatorKind::ALL.map(EstimatorKind::name);
            word.parse().map_err(|()| unknown_word("estimator", word, &names))
        });
        let changed = Balance {
            scheme: scheme.transpose()?.unwrap_or(balance.scheme),
            tariff: self.tariff.unwrap_or(balance.tariff),
            estimator: estimator.transpose()?.unwrap_or(balance.estimator),
            high_watermark: self.high_watermark.unwrap_or(balance.high_watermark),
            low_watermark: self.low_watermark.unwrap_or(balance.low_watermark),
        };
        if changed.is_sound() {
            return Ok(changed);
        }
        let Balance { tariff, high_watermark, low_watermark, .. } = changed;
        Err(Error::usage(
            format_args!("tariff {tariff}, watermarks {high_watermark} and {low_watermark}"),
            "out of range",
            "choose a tariff of 1 to 1000 and watermarks of 0.1 to 10, the low one not above the high",
        ))
    }
}

fn unknown_word(what: &str, word: &str, names: &[&str]) -> Error {
    Error::usage(
        format_args!("{what} \"{word}\""),
        "unknown",
        format!("choose {}", names.join(", ")),
    )
}
