#!/bin/sh
# Makes the Python environment the lab is checked with, once: scripts/python-venv.sh DIR
#
# boto3 is AWS's own client, moto carries a second public table of instance types. Versions are pinned so that a
# change of theirs is a change of ours.
set -eu

dir=${1:?usage: python-venv.sh DIR}
wanted='boto3==1.44.5 moto==5.2.5'

if [ "$(cat "$dir/.wanted" 2>/dev/null || true)" = "$wanted" ]; then
	exit 0
fi
python3 -m venv "$dir" || {
	echo "python-venv.sh: python3 with the venv module is needed (Debian: apt-get install python3-venv)" >&2
	exit 1
}
# shellcheck disable=SC2086 # two words on purpose
"$dir/bin/pip" install --quiet --disable-pip-version-check --no-input $wanted || {
	echo "python-venv.sh: could not install $wanted; is a Python package index reachable?" >&2
	exit 1
}
printf '%s' "$wanted" >"$dir/.wanted"
