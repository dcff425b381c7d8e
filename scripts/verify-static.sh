#!/usr/bin/env bash
# Usage: [RUNNER=qemu-aarch64-static] scripts/verify-static.sh BINARY
# Fails unless BINARY is static and within its size budget; prints its size and the time from exec to exit of VERSION
# beside a static "hello" of the same toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1
budget=$((12 * 1024 * 1024))

fail() { echo "verify-static: $*" >&2; exit 1; }

readelf -lW "$binary" | grep -q INTERP && fail "$binary asks for a dynamic loader (INTERP)"
readelf -dW "$binary" 2>/dev/null | grep -q NEEDED && fail "$binary needs shared libraries (NEEDED)"
size=$(stat -c %s "$binary")
printf 'static: no INTERP, no NEEDED\nsize:   %s bytes (%s MiB), budget 12 MiB\n' "$size" "$(awk "BEGIN{printf \"%.2f\", $size/1048576}")"
[ "$size" -le "$budget" ] || fail "$binary is over its budget of $budget bytes"

version=$(CNI_COMMAND=VERSION ${RUNNER:-} "$binary" </dev/null) || fail "VERSION failed"
grep -q '"supportedVersions"' <<<"$version" || fail "VERSION answered: $version"
echo "VERSION: $version"
if [ -n "${RUNNER:-}" ]; then
    for applet in aws-cni ipamd egress-cni aws-cni-support; do
        $RUNNER "$binary" "$applet" --version
    done
    exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo 'fn main() { println!("hello"); }' >"$scratch/hello.rs"
rustc --target x86_64-unknown-linux-musl -O -C relocation-model=static -C panic=abort -C strip=symbols -o "$scratch/hello" "$scratch/hello.rs"
rustc -O -o "$scratch/exec-time" benches/exec_time.rs
"$scratch/exec-time" "$scratch/hello" "$binary"
