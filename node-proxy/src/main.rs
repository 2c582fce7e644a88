//! `shoal-node`: arguments, configuration, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use node_proxy::app::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
