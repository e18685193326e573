//! `kvorum cluster`: form a cluster, or run one on this machine.

use clap::Subcommand;

use super::context::Context;
use super::failure::{Done, Failure};
use super::{init, local};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a cluster of nodes that wait for one.
    Init(init::Args),
    /// Start and supervise a development cluster of real processes on this machine.
    Local(local::Args),
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    match args.command {
        Command::Init(args) => init::run(context, args).await,
        Command::Local(args) => local::run(context, args).await,
    }
}
