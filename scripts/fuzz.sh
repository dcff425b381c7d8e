#!/usr/bin/env bash
# Runs each libFuzzer target for a while (SECONDS_EACH, 60 unless set), or only those named. Needs a nightly compiler and
# cargo-fuzz. What is found stays in fuzz/artifacts; new inputs go to a directory of their own, beside the corpus.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "make fuzz needs a nightly compiler: rustup toolchain install nightly --profile minimal" >&2
    exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "make fuzz needs cargo-fuzz: cargo install --locked cargo-fuzz" >&2
    exit 1
fi

# The same versions as the program's.
cp ../Cargo.lock Cargo.lock

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
fi
for target in "${targets[@]}"; do
    mkdir -p "found/$target"
    # Nothing here is unsafe, so no sanitizer: it would only make the AWS SDK slower to build and to run.
    cargo +nightly fuzz run --dev --sanitizer none "$target" "found/$target" "corpus/$target" -- \
        -max_total_time="${SECONDS_EACH:-60}" -max_len=16384 -timeout=10 -rss_limit_mb=2048
done
