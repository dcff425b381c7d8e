#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aws_cni::fuzz::plugin_calls(data));
