//! Compiles the contracts with protox, so that no `protoc` is needed.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let file = "proto/shoal/control/v1/control.proto";
    println!("cargo::rerun-if-changed={file}");
    let set = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure().codec_path("crate::codec::Small").compile_fds(set)?;
    Ok(())
}
