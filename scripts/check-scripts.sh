#!/usr/bin/env bash
# Syntax of every shell script of ours, and shellcheck's opinion where it is installed; the rest of linting is cargo's.
set -euo pipefail
cd "$(dirname "$0")/.."
for script in scripts/*.sh .ci/run; do
    bash -n "$script"
done
if command -v shellcheck >/dev/null; then
    shellcheck scripts/*.sh .ci/run
else
    echo "check-scripts: shellcheck is not installed; only the syntax was checked" >&2
fi
