#!/bin/sh
# Writes requirements/*.txt: every package with its hashes, none younger than a week, no address of any index.
#   tools/lock.sh PYTHON
set -eu
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$1" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet uv
week_ago=$("$1" -c 'import datetime; print((datetime.date.today() - datetime.timedelta(days=7)).isoformat())')
compile() {
	"$environment/bin/uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
		--exclude-newer "$week_ago" --no-header --no-annotate "$@"
}
compile --all-extras --group dev --output-file requirements/dev.txt
compile --group build --constraint requirements/dev.txt --output-file requirements/base.txt
compile deploy/ray/requirements.in --group build --constraint requirements/base.txt --output-file requirements/ray.txt
