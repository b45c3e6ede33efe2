#!/bin/sh
# Installs a lock file and Passerelle itself into the environment of the given interpreter.
#   tools/install.sh PYTHON LOCK
# Works without a network once pip's cache holds the packages.
set -eu
python=$1 lock=$2
log=$(mktemp)
trap 'rm -f "$log"' EXIT

install() {
	PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip install --quiet --progress-bar off "$@" >"$log" 2>&1
}

if ! install --require-hashes -r "$lock"; then
	cat "$log" >&2
	echo "Installing the packages of $lock failed; the lines above say why. With no network, run it once online first." >&2
	exit 2
fi
# Editable without a build environment of its own: hatchling is in the lock, so nothing more is fetched.
if ! install --no-deps --no-build-isolation -e .; then
	cat "$log" >&2
	echo "Installing Passerelle itself failed; the lines above say why." >&2
	exit 2
fi
