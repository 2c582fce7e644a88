//! `lab`
use anyhow::Result;
fn main() -> Result<()> {
    let tools = lab::tools::setup()?;
    for line in tools.versions()? { println!("{line}"); }
    Ok(())
}
