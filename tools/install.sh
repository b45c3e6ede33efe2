#!/bin/sh
# Installs a lock file and Passerelle itself into the environment of the given interpreter.
#   tools/install.sh PYTHON LOCK
# The wheels are kept in a cache of ours, so that a second clone installs without a network: pip's own cache does not
# answer what versions there are.
set -eu
python=$1 lock=$2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/passerelle/wheels
log=$(mktemp)
trap 'rm -f "$log"' EXIT

quietly() {
	PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip "$@" >"$log" 2>&1
}

fail() {
	tail -n 20 "$log" >&2
	echo "$1" >&2
	exit 2
}

from_cache() {
	quietly install --quiet --no-index --find-links "$cache" --require-hashes -r "$lock"
}

mkdir -p "$cache" || { echo "Cannot make the package cache $cache; set XDG_CACHE_HOME." >&2; exit 2; }
if ! from_cache; then
	echo "    fetching packages into the cache (once)"
	quietly download --quiet --prefer-binary --find-links "$cache" --dest "$cache" --require-hashes -r "$lock" ||
		fail "The packages of $lock could not be fetched; the lines above say why. Without a network, run this once online first."
	from_cache || fail "The packages of $lock could not be installed; the lines above say why."
fi
# Editable, without an isolated build environment: what builds it is in the lock.
quietly install --quiet --no-index --no-deps --no-build-isolation -e . ||
	fail "Passerelle itself could not be installed; the lines above say why."
