//! Ids of clusters, stores, nodes and shards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match u128::from_str_radix(text, 16) {
                    Ok(id) if text.len() == 32 => Ok(Self(id)),
                    _ => Err(Error::invalid(format!(
                        "{text:?} is not a {} id: it must be 32 hexadecimal digits",
                        $what
                    ))),
                }
            }
        }
    };
}

random_id!(
    /// Names one cluster for ever: drawn at random by `cluster init`, stored on every node, and
    /// checked on every connection, so that nodes of two clusters never mix.
    ClusterId,
    "cluster"
);
random_id!(
    /// Names one data directory for ever. A node id that comes back with another store id is a
    /// wiped node: it is refused, since the votes and log entries it acknowledged are gone.
    StoreId,
    "store"
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number_id!(
    /// A node of the cluster. Given by the cluster, kept for ever, never used again; 0 is nobody.
    NodeId
);
number_id!(
    /// A shard: one contiguous key range, replicated by one Raft group. Shard 0 is the system shard.
    ShardId
);

impl ShardId {
    /// The shard that holds the system keyspace: node registry, shard map, timestamp ceiling.
    pub const SYSTEM: ShardId = ShardId(0);
}
