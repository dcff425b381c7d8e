#!/usr/bin/env bash
# Usage: scripts/bench.sh [--runs N] [--bursts N]
# Builds the static release binary, the floor program and the lab, and runs the benchmark. Takes root, or a user
# namespace; under five minutes once everything is built.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
target=${CARGO_TARGET_DIR:-target}
musl=x86_64-unknown-linux-musl
scripts/setup.sh static
"${CARGO:-cargo}" build --release --target $musl --bin aws-cni
"${CARGO:-cargo}" build --package aws-cni-lab --bin aws-cni-lab

if [[ " $* " != *" --modes "* ]]; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(unshare --user --map-root-user)
    # The time is the kernel's, so the profile that the tests have built will do.
    forwarding=$("${CARGO:-cargo}" bench --quiet --profile dev --bench forwarding --no-run --message-format json |
        sed -n 's/.*"executable":"\([^"]*\/forwarding-[^"]*\)".*/\1/p')
    "${as_root[@]}" "$forwarding" --bench
fi

tools=$target/bench
mkdir -p "$tools"
tool() { rustc --edition 2024 --target $musl -O -C relocation-model=static -C panic=abort -C strip=symbols -o "$tools/$1" "$2"; }
tool floor benches/floor.rs
echo 'fn main() { println!("hello"); }' >"$tools/hello.rs"
tool hello "$tools/hello.rs"

run=("$(realpath "$target")/debug/aws-cni-lab" bench
    --binary "$(realpath "$target/$musl/release/aws-cni")" --floor "$(realpath "$tools/floor")" --hello "$(realpath "$tools/hello")" "$@")
if [ -S /run/systemd/journal/socket ]; then
    exec "${run[@]}"
fi
# Where there is no journald the lab plays one, at its address in a mount namespace of our own.
flags=(--mount)
[ "$(id -u)" = 0 ] || flags+=(--user --map-root-user --net)
exec unshare "${flags[@]}" -- sh -c 'mount -t tmpfs bench /run && mkdir -p /run/systemd/journal && exec "$@"' sh "${run[@]}"
