//! How large the pages are in which the kernel gives memory to this process.

/// Small ones only: a huge page counts 2 MiB as used when a byte of it is, and of a buffer that lies ready most is never touched. With
/// ten thousand connections that is a third of a process.
///
/// # Errors
/// What the kernel said, in words for a log: the process is larger, and works.
pub fn keep_small() -> Result<(), String> {
    rustix::thread::disable_transparent_huge_pages(true).map_err(|error| format!("turn off huge pages: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_is_told() {
        super::keep_small().unwrap();
        assert!(rustix::thread::transparent_huge_pages_are_disabled().unwrap());
    }
}
