//! What every command is given: the global flags, and connections made from them.

use std::time::Duration;

use crate::client::{Builder, Client};
use crate::types::ClusterId;
use crate::types::limits::{DEFAULT_DEADLINE_MS, MAX_DEADLINE_MS};
use crate::{Error, Result};

use super::logging::LogFormat;
use super::output::Format;

/// The flags that every command takes.
#[derive(clap::Args, Debug)]
pub struct GlobalArgs {
    /// Nodes to ask, as host:port, comma-separated. One that answers is enough.
    #[arg(
        long,
        global = true,
        env = "KVORUM_ENDPOINTS",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub endpoints: Vec<String>,
    /// How results and errors are printed.
    #[arg(long, global = true, env = "KVORUM_OUTPUT", value_name = "FORMAT", default_value = "text")]
    pub output: Format,
    /// How long one operation may take, retries included: 500ms, 10s, 2m. At most 5m.
    #[arg(long, global = true, env = "KVORUM_DEADLINE", value_name = "TIME", value_parser = deadline)]
    pub deadline: Option<Duration>,
    /// Refuse to talk to any cluster but this one (32 hexadecimal digits).
    #[arg(long, global = true, env = "KVORUM_CLUSTER_ID", value_name = "ID")]
    pub cluster_id: Option<ClusterId>,
    /// Keys and values are given and printed in hexadecimal.
    #[arg(long, global = true)]
    pub hex: bool,
    /// The form of log lines on standard error. KVORUM_LOG filters them.
    #[arg(long, global = true, env = "KVORUM_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// A time for one operation, with its unit.
fn deadline(text: &str) -> std::result::Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a number and a unit, such as 500ms, 10s or 2m"))?;
    let limit = Duration::from_millis(MAX_DEADLINE_MS);
    if time < Duration::from_millis(1) || time > limit {
        return Err(format!("a deadline must be from 1ms to {}", humantime::format_duration(limit)));
    }
    Ok(time)
}

/// The global flags, checked.
#[derive(Clone, Debug)]
pub struct Context {
    /// Nodes to ask, as `host:port`.
    pub endpoints: Vec<String>,
    /// The form of results and errors.
    pub output: Format,
    /// How long one operation may take.
    pub deadline: Duration,
    /// The only cluster to talk to, where one was named.
    pub cluster_id: Option<ClusterId>,
    /// Whether keys and values are given and printed in hexadecimal.
    pub hex: bool,
}

impl Context {
    /// Checks the flags.
    ///
    /// # Errors
    /// `Invalid` where an endpoint is not `host:port`.
    pub fn new(args: &GlobalArgs) -> Result<Self> {
        let endpoints: Vec<String> = args.endpoints.iter().map(|one| one.trim().to_owned()).collect();
        endpoints.iter().try_for_each(|endpoint| check_address(endpoint, "--endpoints"))?;
        Ok(Self {
            endpoints,
            output: args.output,
            deadline: args.deadline.unwrap_or(Duration::from_millis(DEFAULT_DEADLINE_MS)),
            cluster_id: args.cluster_id,
            hex: args.hex,
        })
    }

    /// Connects to the cluster.
    pub async fn client(&self) -> Result<Client> {
        self.builder().connect().await
    }

    /// A client of the cluster, to be given more options.
    pub fn builder(&self) -> Builder {
        let builder = Client::builder().endpoints(self.endpoints.clone()).deadline(self.deadline);
        match self.cluster_id {
            Some(cluster_id) => builder.cluster_id(cluster_id),
            None => builder,
        }
    }
}

/// Checks that an address is `host:port`; `flag` is named in the error.
pub fn check_address(address: &str, flag: &str) -> Result<()> {
    let well_formed = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok());
    if well_formed {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{address:?} (from {flag}) is not an address: give host:port, such as 127.0.0.1:7400"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_deadlines_are_checked() {
        for good in ["127.0.0.1:7400", "node-1.example:1", "[::1]:7400"] {
            check_address(good, "--listen").expect(good);
        }
        for bad in ["", "localhost", ":7400", "a:70000", "http://a:1"] {
            check_address(bad, "--listen").expect_err(bad);
        }
        assert_eq!(deadline("500ms"), Ok(Duration::from_millis(500)));
        assert!(deadline("0s").is_err() && deadline("6m").is_err() && deadline("ten").is_err());
    }
}
