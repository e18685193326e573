//! The policies by which a client spreads its reads, and their names.

use std::fmt;
use std::str::FromStr;

use crate::types::{Error, Result};

/// Which replicas of a shard serve a client's reads. Every policy reads the same data: a replica that can't
/// tell whether it is up to date refuses, and the read goes elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// The shard's leader; another replica only where the leader is unknown or failed.
    Leader,
    /// All replicas evenly, save those that are clearly worse than the others.
    #[default]
    Balanced,
    /// Those in the client's own zone evenly; where none of them is well, all as with
    /// [`Balanced`](Self::Balanced).
    Nearest,
}

impl Policy {
    const ALL: [Self; 3] = [Self::Leader, Self::Balanced, Self::Nearest];

    /// Its name, which [`FromStr`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Balanced => "balanced",
            Self::Nearest => "nearest",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid(format!("{text:?} is no read policy: it must be one of {names}"))
        })
    }
}
