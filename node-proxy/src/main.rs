//! `shoal-node`: arguments, configuration, run, exit code.

use std::alloc::System;
use std::process::ExitCode;

use clap::Parser;
use node_proxy::app::cli::{self, Cli};
use zeroizing_alloc::ZeroAlloc;

/// What is given back is overwritten, so that no credential stays behind in memory (I9).
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
