#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aws_cni::fuzz::ec2_answers(data));
