//! The command `kvorum-jepsen`.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
