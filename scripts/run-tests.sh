#!/usr/bin/env bash
# Runs every test of the workspace. The tests make their own network namespaces, which takes root; without it they run
# as root of a user namespace of their own where the kernel allows that.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
# Many integration tests wait, for a minute's age or a back-off, more than they work.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((3 * $(nproc)))}"
if [ "$(id -u)" = 0 ]; then
    exec "${CARGO:-cargo}" test --workspace "$@"
fi
"${CARGO:-cargo}" test --workspace --no-run
# A new network namespace starts with its loopback down, and the SDK's tests talk over it.
# shellcheck disable=SC2016 # for the inner shell
exec unshare --user --map-root-user --net --mount -- \
    sh -c 'ip link set lo up && exec "$@"' sh "${CARGO:-cargo}" test --workspace --offline "$@"
