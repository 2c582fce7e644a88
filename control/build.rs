//! Builds again when a migration is added: `sqlx::migrate!` reads the directory while compiling and can't say so.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
