#!/usr/bin/env bash
# Writes requirements.txt and requirements-dev.txt anew: complete pinned locks of pyproject.toml's ranges.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3.11 -m venv "$tools"
"$tools/bin/pip" install --quiet pip-tools

compile() {
  "$tools/bin/pip-compile" --quiet --upgrade --strip-extras --allow-unsafe --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$@" pyproject.toml
}
compile --output-file requirements.txt
compile --extra dev --constraint requirements.txt --output-file requirements-dev.txt
# A build tag such as +cpu names one machine's file; the version alone is found everywhere.
sed -i -E 's/^([a-z0-9-]+==[0-9.]+)\+[a-z0-9]+$/\1/' requirements-dev.txt
for lock in requirements.txt requirements-dev.txt; do
  sed -i '1i # Complete lock of the ranges in pyproject.toml; ./launch/lock.sh writes it.' "$lock"
done
