#!/usr/bin/env bash
# Runs every test of the workspace. The tests make their own network namespaces, which takes root; without it they run
# as root of a user namespace of their own where the kernel allows that.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
if [ "$(id -u)" = 0 ]; then
    exec "${CARGO:-cargo}" test --workspace "$@"
fi
"${CARGO:-cargo}" test --workspace --no-run
exec unshare --user --map-root-user --net --mount -- "${CARGO:-cargo}" test --workspace --offline "$@"
