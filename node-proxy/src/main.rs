//! `shoal-node`: arguments, configuration, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use node_proxy::app::cli::{self, Cli};
use zeroizing_alloc::ZeroAlloc;

/// What is given back is overwritten, so that no credential stays behind in memory (I9). Overwriting touches pages that were never used;
/// this allocator gives those back to the system, where glibc's keeps all that lies below something in use.
#[global_allocator]
static MEMORY: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
