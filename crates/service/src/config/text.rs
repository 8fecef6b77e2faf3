//! How a configuration travels from the supervisor to a server: values with a notation of their
//! own as text. Used by the derived serialisation of `Config`.

/// A value with a notation.
pub mod one {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// As text.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// From text.
    ///
    /// # Errors
    /// When it is not the notation.
    pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| Error::custom("not in its notation"))
    }
}

/// Several of them.
pub mod list {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// As texts.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<T: Display, S: Serializer>(all: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(ToString::to_string))
    }

    /// From texts.
    ///
    /// # Errors
    /// When one is not the notation.
    pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let parse = |text: &String| text.parse().map_err(|_| Error::custom("not in its notation"));
        texts.iter().map(parse).collect()
    }
}

/// Routes: destination and gateway.
pub mod routes {
    use std::net::IpAddr;

    use haypile_engine::Route;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// As pairs.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(all: &[Route], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(|route| (route.destination.to_string(), route.gateway)))
    }

    /// From pairs.
    ///
    /// # Errors
    /// When a destination is no network.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Route>, D::Error> {
        let pairs = Vec::<(String, Option<IpAddr>)>::deserialize(from)?;
        let parse = |(destination, gateway): (String, Option<IpAddr>)| {
            let destination = destination.parse().map_err(|_| Error::custom("not a network"))?;
            Ok(Route { destination, gateway })
        };
        pairs.into_iter().map(parse).collect()
    }
}

/// What is offloaded, by number.
pub mod offload {
    use haypile_link::tap::Offload;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const ALL: [Offload; 3] = [Offload::None, Offload::Checksum, Offload::Segmentation];

    /// As a number.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(value: &Offload, to: S) -> Result<S::Ok, S::Error> {
        let place = ALL.iter().position(|known| known == value).unwrap_or(0);
        to.serialize_u8(place as u8)
    }

    /// From a number.
    ///
    /// # Errors
    /// When there is no such offload.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Offload, D::Error> {
        let place = usize::from(u8::deserialize(from)?);
        ALL.get(place).copied().ok_or_else(|| Error::custom("no such offload"))
    }
}

/// How frames are spread, where they are.
pub mod steering {
    use haypile_engine::steering::Steering;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// As key, rule and number of servers: as if every server had an equal run of buckets.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(value: &Option<Steering>, to: S) -> Result<S::Ok, S::Error> {
        let parts = |all: &Steering| (all.key(), all.rule().to_string(), all.servers());
        value.as_ref().map(parts).serialize(to)
    }

    /// From key, rule and number of servers.
    ///
    /// # Errors
    /// When there is no such rule.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Steering>, D::Error> {
        let parts = Option::<(u64, String, u16)>::deserialize(from)?;
        let make = |(key, rule, servers): (u64, String, u16)| {
            let rule = rule.parse().map_err(|_| Error::custom("no such rule"))?;
            Ok(Steering::new(key, rule, servers))
        };
        parts.map(make).transpose()
    }
}

/// A bad path, as it was written, with its seed.
pub mod fault {
    use haypile_link::fault::FaultSpec;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// As text and number.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(
        fault: &Option<(FaultSpec, u64)>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        fault.as_ref().map(|(spec, seed)| (spec.to_string(), *seed)).serialize(to)
    }

    /// From text and number.
    ///
    /// # Errors
    /// When the text is no path.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<(FaultSpec, u64)>, D::Error> {
        let fault = Option::<(String, u64)>::deserialize(from)?;
        let parse = |(spec, seed): (String, u64)| {
            let spec = spec.parse().map_err(|_| Error::custom("not a path"))?;
            Ok((spec, seed))
        };
        fault.map(parse).transpose()
    }
}

/// How connections are balanced, as it would be changed.
pub mod balance {
    use haypile_engine::control::balancer::Balance;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::config::BalanceChange;

    /// As words and numbers.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(balance: &Balance, to: S) -> Result<S::Ok, S::Error> {
        BalanceChange::all_of(balance).serialize(to)
    }

    /// From words and numbers.
    ///
    /// # Errors
    /// When one is unknown or out of range.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Balance, D::Error> {
        let change = BalanceChange::deserialize(from)?;
        change.apply(Balance::default()).map_err(Error::custom)
    }
}
