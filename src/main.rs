//! The `kvorum` command; everything is in `kvorum::cli`.

fn main() -> std::process::ExitCode {
    kvorum::cli::main()
}
