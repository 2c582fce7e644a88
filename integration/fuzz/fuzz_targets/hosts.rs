#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| node_proxy::install::fuzz::hosts(data));
