//! How state crosses from one server to another: numbers in a fixed order, little-endian, with a total decoder.
//!
//! Used by `tcp/carry.rs` (a connection), `tcp/time_wait.rs` (a TIME-WAIT record) and [`crate::migration`] (a
//! bucket). Fields are listed once, in `carried!`, beside their type: one that is added to the type and not to
//! the list does not compile. Points in time cross as distances from one moment, so that the two clocks need not
//! have the same start. What is read may be nonsense: a reader never panics, and ranges are checked by whoever
//! reads.

use std::net::{IpAddr, SocketAddr};

use crate::tcp::SeqNumber;
use crate::time::Instant;

/// The point in time that never comes.
const NEVER: Instant = Instant::from_us(u64::MAX);
/// The distance of [`NEVER`], and that of the start of time, which stands for "not yet".
const NEVER_US: i64 = i64::MAX;
const NOT_YET_US: i64 = i64::MIN;
/// Points in time lie within this many microseconds of the moment: 35,000 years.
const DISTANCE_MAX_US: i64 = 1 << 60;

/// Why what another server sent cannot be taken.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It ends too early.
    Truncated,
    /// It goes on after its end.
    TooLong,
    /// It is of a version that we do not know.
    Version(u16),
    /// It says what cannot be; the text names it.
    Impossible(&'static str),
    /// It has a flow that we hold already.
    Occupied,
    /// There is no room for so many connections.
    NoRoom,
    /// No route leads to a peer.
    NoRoute,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::Truncated => "it ends too early",
            Refusal::TooLong => "it goes on after its end",
            Refusal::Version(version) => return write!(f, "version {version} is not known"),
            Refusal::Impossible(what) => return write!(f, "impossible: {what}"),
            Refusal::Occupied => "it has a flow that exists here already",
            Refusal::NoRoom => "there is no room for so many connections",
            Refusal::NoRoute => "no route leads to a peer",
        })
    }
}

impl std::error::Error for Refusal {}

/// Collects what is to cross.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    moment: Instant,
}

impl Writer {
    /// Nothing yet; points in time are told as distances from `moment`.
    pub fn new(moment: Instant) -> Writer {
        Writer { bytes: Vec::new(), moment }
    }

    /// What was collected.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes, with their number.
    pub fn bytes(&mut self, bytes: &[u8]) {
        (bytes.len() as u32).write(self);
        self.bytes.extend_from_slice(bytes);
    }

    /// The low half of a point in time in microseconds, as its age.
    pub fn low_half(&mut self, at_us: u32) {
        (self.moment.us() as u32).wrapping_sub(at_us).write(self);
    }

    /// A point in time in whole seconds, as its age.
    pub fn seconds(&mut self, at_s: u32) {
        ((self.moment.us() / 1_000_000) as u32).wrapping_sub(at_s).write(self);
    }

    /// What is added to our clock in timestamps, as the timestamp of the moment.
    pub fn clock(&mut self, offset: u32) {
        offset.wrapping_add((self.moment.us() / 1000) as u32).write(self);
    }
}

/// Takes apart what has crossed.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    moment: Instant,
}

impl<'a> Reader<'a> {
    /// All of `bytes`; `moment` is when they were written, by our clock.
    pub fn new(bytes: &'a [u8], moment: Instant) -> Reader<'a> {
        Reader { bytes, moment }
    }

    /// What is left, with points in time told from `moment`.
    pub fn at(self, moment: Instant) -> Reader<'a> {
        Reader { moment, ..self }
    }

    /// Bytes with their number, at most `limit`.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], or [`Refusal::Impossible`] when there are more.
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8], Refusal> {
        let len = u32::read(self)? as usize;
        demand(len <= limit, "more bytes than are allowed")?;
        self.take(len)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(Refusal::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// See [`Writer::low_half`].
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn low_half(&mut self) -> Result<u32, Refusal> {
        Ok((self.moment.us() as u32).wrapping_sub(u32::read(self)?))
    }

    /// See [`Writer::seconds`].
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn seconds(&mut self) -> Result<u32, Refusal> {
        Ok(((self.moment.us() / 1_000_000) as u32).wrapping_sub(u32::read(self)?))
    }

    /// See [`Writer::clock`].
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn clock(&mut self) -> Result<u32, Refusal> {
        Ok(u32::read(self)?.wrapping_sub((self.moment.us() / 1000) as u32))
    }

    /// That everything was read.
    ///
    /// # Errors
    /// [`Refusal::TooLong`].
    pub fn end(&self) -> Result<(), Refusal> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Refusal::TooLong) }
    }
}

/// What can cross.
pub trait Carry: Sized {
    /// Appends the value.
    fn write(&self, out: &mut Writer);

    /// Takes the value; what is read is of the type, and no more is promised.
    ///
    /// # Errors
    /// See [`Refusal`].
    fn read(input: &mut Reader<'_>) -> Result<Self, Refusal>;
}

/// That something holds of what was read.
pub fn demand(holds: bool, what: &'static str) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal::Impossible(what)) }
}

/// Implements [`Carry`] for a struct from the list of all its fields, or for an enum without fields from the
/// numbers of its variants. `field: how` uses that method of [`Writer`] and [`Reader`].
macro_rules! carried {
    (struct $name:ident { $($field:ident $(: $how:ident)?),* $(,)? }) => {
        impl $crate::carry::Carry for $name {
            fn write(&self, out: &mut $crate::carry::Writer) {
                let $name { $($field),* } = self;
                $($crate::carry::carried!(@write out $field $($how)?);)*
            }

            fn read(
                input: &mut $crate::carry::Reader<'_>,
            ) -> Result<Self, $crate::carry::Refusal> {
                Ok($name { $($field: $crate::carry::carried!(@read input $($how)?)),* })
            }
        }
    };
    (enum $name:ident { $($variant:ident = $number:literal),* $(,)? }) => {
        impl $crate::carry::Carry for $name {
            fn write(&self, out: &mut $crate::carry::Writer) {
                let number: u8 = match self {
                    $($name::$variant => $number),*
                };
                number.write(out);
            }

            fn read(
                input: &mut $crate::carry::Reader<'_>,
            ) -> Result<Self, $crate::carry::Refusal> {
                Ok(match u8::read(input)? {
                    $($number => $name::$variant,)*
                    _ => return Err($crate::carry::Refusal::Impossible(stringify!($name))),
                })
            }
        }
    };
    (@write $out:ident $field:ident) => { $crate::carry::Carry::write($field, $out) };
    (@write $out:ident $field:ident $how:ident) => { $out.$how(*$field) };
    (@read $input:ident) => { $crate::carry::Carry::read($input)? };
    (@read $input:ident $how:ident) => { $input.$how()? };
}
pub(crate) use carried;

macro_rules! numbers {
    ($($number:ident),*) => {$(
        impl Carry for $number {
            fn write(&self, out: &mut Writer) {
                out.bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn read(input: &mut Reader<'_>) -> Result<$number, Refusal> {
                let bytes = input.take(size_of::<$number>())?;
                bytes.try_into().map($number::from_le_bytes).map_err(|_| Refusal::Truncated)
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, u128, i64);

impl Carry for bool {
    fn write(&self, out: &mut Writer) {
        u8::from(*self).write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<bool, Refusal> {
        match u8::read(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Refusal::Impossible("neither true nor false")),
        }
    }
}

impl<T: Carry> Carry for Option<T> {
    fn write(&self, out: &mut Writer) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Option<T>, Refusal> {
        Ok(if bool::read(input)? { Some(T::read(input)?) } else { None })
    }
}

impl<T: Carry> Carry for Box<T> {
    fn write(&self, out: &mut Writer) {
        T::write(self, out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Box<T>, Refusal> {
        T::read(input).map(Box::new)
    }
}

impl<T: Carry, U: Carry> Carry for (T, U) {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
        self.1.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<(T, U), Refusal> {
        Ok((T::read(input)?, U::read(input)?))
    }
}

impl<T: Carry + Copy + Default, const N: usize> Carry for [T; N] {
    fn write(&self, out: &mut Writer) {
        self.iter().for_each(|value| value.write(out));
    }

    fn read(input: &mut Reader<'_>) -> Result<[T; N], Refusal> {
        let mut values = [T::default(); N];
        for value in &mut values {
            *value = T::read(input)?;
        }
        Ok(values)
    }
}

/// Writes a list with its length.
pub fn write_list<'a, T: Carry + 'a>(
    out: &mut Writer,
    values: impl ExactSizeIterator<Item = &'a T>,
) {
    (values.len() as u32).write(out);
    values.for_each(|value| value.write(out));
}

/// Reads a list of at most `limit` values.
///
/// # Errors
/// See [`Refusal`].
pub fn read_list<T: Carry, C: FromIterator<T>>(
    input: &mut Reader<'_>,
    limit: usize,
) -> Result<C, Refusal> {
    let len = u32::read(input)? as usize;
    demand(len <= limit, "a list that is too long")?;
    (0..len).map(|_| T::read(input)).collect()
}

impl Carry for SeqNumber {
    fn write(&self, out: &mut Writer) {
        self.value().write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<SeqNumber, Refusal> {
        u32::read(input).map(SeqNumber::new)
    }
}

impl Carry for Instant {
    fn write(&self, out: &mut Writer) {
        let distance_us = match *self {
            NEVER => NEVER_US,
            at if at == Instant::default() => NOT_YET_US,
            at => at.us().wrapping_sub(out.moment.us()) as i64,
        };
        distance_us.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Instant, Refusal> {
        Ok(match i64::read(input)? {
            NEVER_US => NEVER,
            NOT_YET_US => Instant::default(),
            distance_us => {
                let sane = (-DISTANCE_MAX_US..DISTANCE_MAX_US).contains(&distance_us);
                demand(sane, "a point in time")?;
                // What is older than our clock is as old as it can be, and no "not yet".
                Instant::from_us(input.moment.us().saturating_add_signed(distance_us).max(1))
            }
        })
    }
}

impl Carry for SocketAddr {
    fn write(&self, out: &mut Writer) {
        self.is_ipv6().write(out);
        match self.ip() {
            IpAddr::V4(addr) => u32::from(addr).write(out),
            IpAddr::V6(addr) => u128::from(addr).write(out),
        }
        self.port().write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<SocketAddr, Refusal> {
        let addr = match bool::read(input)? {
            false => IpAddr::V4(u32::read(input)?.into()),
            true => IpAddr::V6(u128::read(input)?.into()),
        };
        Ok(SocketAddr::new(addr, u16::read(input)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round<T: Carry>(value: &T, moment: Instant, arrived: Instant) -> Result<T, Refusal> {
        let mut out = Writer::new(moment);
        value.write(&mut out);
        let bytes = out.into_bytes();
        let mut input = Reader::new(&bytes, arrived);
        let read = T::read(&mut input)?;
        input.end()?;
        Ok(read)
    }

    proptest! {
        #[test]
        fn times_keep_their_distance(moment in 1_u64..1 << 50, at in 1_u64..1 << 50, later in 0_u64..1 << 50) {
            let (moment, at) = (Instant::from_us(moment), Instant::from_us(at));
            prop_assert_eq!(round(&at, moment, moment), Ok(at));
            let moved = round(&at, moment, moment.plus_us(later));
            prop_assert_eq!(moved, Ok(at.plus_us(later)));
        }

        #[test]
        fn addresses_and_options_survive(addr: std::net::SocketAddr, number: Option<u32>, list: [u16; 3]) {
            let addr = SocketAddr::new(addr.ip(), addr.port());
            let moment = Instant::from_us(7);
            prop_assert_eq!(round(&addr, moment, moment), Ok(addr));
            prop_assert_eq!(round(&number, moment, moment), Ok(number));
            prop_assert_eq!(round(&list, moment, moment), Ok(list));
        }
    }

    #[test]
    fn never_and_not_yet_stay_what_they_are() {
        let (moment, arrived) = (Instant::from_us(5_000), Instant::from_us(9_000));
        assert_eq!(round(&NEVER, moment, arrived), Ok(NEVER));
        assert_eq!(round(&Instant::default(), moment, arrived), Ok(Instant::default()));
        assert_eq!(
            round(&Instant::from_us(1), moment, Instant::from_us(3)),
            Ok(Instant::from_us(1))
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let mut input = Reader::new(&[2], Instant::default());
        assert!(matches!(bool::read(&mut input), Err(Refusal::Impossible(_))));
        let mut input = Reader::new(&[1, 2, 3], Instant::default());
        assert_eq!(u32::read(&mut input), Err(Refusal::Truncated));
        let far = (i64::MAX - 1).to_le_bytes();
        let mut input = Reader::new(&far, Instant::default());
        assert!(matches!(Instant::read(&mut input), Err(Refusal::Impossible(_))));
        let mut input = Reader::new(&[9, 0, 0, 0, 1], Instant::default());
        assert!(read_list::<u8, Vec<_>>(&mut input, 8).is_err());
    }
}
