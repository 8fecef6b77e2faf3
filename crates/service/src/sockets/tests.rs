//! Tests of the socket records.
