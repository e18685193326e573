//! `kvorum completion`: a script that completes commands and flags in a shell.

use clap_complete::Shell;

use super::failure::{Done, Failure};
use super::output;

const EXAMPLES: &str = "\
Examples:
  kvorum completion bash > /etc/bash_completion.d/kvorum
  kvorum completion zsh > ~/.zfunc/_kvorum";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell to complete in.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub fn run(command: &mut clap::Command, args: &Args) -> Result<Done, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "kvorum", &mut script);
    let mut out = output::stdout();
    std::io::Write::write_all(&mut out, &script)?;
    std::io::Write::flush(&mut out)?;
    Ok(Done::Ok)
}
