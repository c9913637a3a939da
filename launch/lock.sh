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
# jax2onnx asks for an Orbax older than ours, which none of its modules imports: no resolver takes both. It is
# therefore installed with --no-deps, as both locks are.
echo "jax2onnx==0.17.1" >> requirements-dev.txt
for lock in requirements.txt requirements-dev.txt; do
  # A build tag such as +cpu names one machine's file; the version alone is found everywhere.
  pins=$(sed -nE 's/^([a-z0-9_.-]+==[0-9a-z.]+)(\+[a-z0-9.]+)?$/\1/p' "$lock" | sort)
  printf '%s\n' '# Complete lock of the ranges in pyproject.toml; ./launch/lock.sh writes it.' "$pins" > "$lock"
done
