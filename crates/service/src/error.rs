//! The one error type of the service's start-up and control paths.
//!
//! It owns the form every error of this crate takes on stderr: one line, "what: why; what to do".
//! Called by everything that talks to the operating system or reads configuration. Errors that
//! peers or applications cause never get here: they are counted (`stats`) or answered by errno.

use std::fmt;

/// What failed, why, and what the user can do about it. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    what: String,
    why: String,
    remedy: String,
    kind: Kind,
}

/// What callers have to tell apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Kind {
    Failure,
    Usage,
    Silence,
}

impl Error {
    /// An error of three parts; `remedy` may be empty when there is nothing to advise.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        let (what, why, remedy) = (one_line(what), one_line(why), one_line(remedy));
        Error { what, why, remedy, kind: Kind::Failure }
    }

    /// As [`Error::new`], of a value on the command line or in a configuration that can never be right.
    pub fn usage(
        what: impl fmt::Display,
        why: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Error { kind: Kind::Usage, ..Error::new(what, why, remedy) }
    }

    /// Whether the command was given wrongly, for the exit status.
    pub fn is_usage(&self) -> bool {
        self.kind == Kind::Usage
    }

    /// As [`Error::new`], of somebody who is there and does not answer.
    pub fn silence(
        what: impl fmt::Display,
        why: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Error { kind: Kind::Silence, ..Error::new(what, why, remedy) }
    }

    /// Whether somebody is there and does not answer.
    pub fn is_silence(&self) -> bool {
        self.kind == Kind::Silence
    }

    /// What was attempted.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The reason it did not work.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What to do about it; empty when nothing is known to help.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Joins the lines of a message (TOML and libc messages may have several).
fn one_line(text: impl fmt::Display) -> String {
    let text = text.to_string();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_one_line() {
        let error = Error::new("open tap0", "permission\n denied", "run as root");
        assert_eq!(error.to_string(), "open tap0: permission denied; run as root");
        assert_eq!(Error::new("a", "b", "").to_string(), "a: b");
        let usage = Error::usage("mtu 5", "too small", "choose more");
        assert_eq!(usage.to_string(), "mtu 5: too small; choose more");
        assert!(usage.is_usage() && !error.is_usage());
        let silence = Error::silence("a", "b", "c");
        assert!(silence.is_silence() && !silence.is_usage() && !usage.is_silence());
    }
}
