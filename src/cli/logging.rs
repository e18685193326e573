//! The log on standard error: readable lines with colour on a terminal, plain text or JSON elsewhere.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::context::GlobalArgs;

/// The form of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum LogFormat {
    /// One line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// Starts logging. `KVORUM_LOG` filters (`info`, `kvorum=debug,openraft=warn`).
pub fn init(args: &GlobalArgs) {
    let filter = EnvFilter::try_from_env("KVORUM_LOG")
        .unwrap_or_else(|_| EnvFilter::new("kvorum=info,openraft=warn,warn"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails only where a logger is set already, which then stays.
    let _ = match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
