//! `shoal-control`: arguments, configuration, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use control::app::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
