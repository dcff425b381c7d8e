//! Dispatch on the name the binary was called by.

fn main() -> std::process::ExitCode {
    aws_cni::applets::main(std::env::args_os())
}
