#!/usr/bin/env bash
# Syntax of every shell script of ours; the rest of linting is cargo's.
set -euo pipefail
cd "$(dirname "$0")/.."
for script in scripts/*.sh .ci/run; do
    bash -n "$script"
done
