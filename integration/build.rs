//! Compiles the part of CRI that the lab speaks, with protox, so that no `protoc` is needed.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let file = "proto/runtime/v1/cri.proto";
    println!("cargo::rerun-if-changed={file}");
    let set = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(set)?;
    Ok(())
}
