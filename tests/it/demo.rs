//! The demo is a promise of the README.

use std::path::Path;

use aws_cni_lab::demo::{self, DemoOptions};

#[test]
fn the_demo_holds() {
    let binary = Path::new(env!("CARGO_BIN_EXE_aws-cni")).to_owned();
    demo::run(&DemoOptions {
        binary,
        pods: 12,
        keep: false,
    })
    .unwrap();
}
