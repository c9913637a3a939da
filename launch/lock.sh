#!/usr/bin/env bash
# Writes the locks, which are complete pins of pyproject.toml's ranges.
#
#   ./launch/lock.sh             requirements.txt and requirements-dev.txt: keeps their pins and adds what is new
#   ./launch/lock.sh --upgrade   requirements-newest.txt: the newest releases of all that runs and tests need
#
# Users and tests install the first two, on the oldest Python. The third shows what the next upgrade breaks: the
# workflow of the tests tries it on the newest Python. To upgrade the first two, delete them and run this script.
set -euo pipefail
cd "$(dirname "$0")/.."

case $* in
  '') python=python3.11 ;;
  --upgrade) python=python3.13 ;;
  *) echo "error: give nothing or --upgrade, not '$*'" >&2; exit 2 ;;
esac
command -v "$python" > /dev/null || { echo "error: $python is not on the PATH: install it" >&2; exit 1; }

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$python" -m venv "$tools"
"$tools/bin/pip" install --quiet pip-tools

# compile LOCK ARGUMENTS...: keeps the pins that LOCK has, where the ranges allow them.
compile() {
  local lock=$1 pins
  shift
  "$tools/bin/pip-compile" --quiet --strip-extras --allow-unsafe --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$@" --output-file "$lock" pyproject.toml
  # A build tag such as +cpu names one machine's file; the version alone is found everywhere.
  # torch of PyPI asks for CUDA's libraries, and torch of its index for CPUs for none: the tests need the latter.
  pins=$(sed -nE 's/^([a-z0-9_.-]+==[0-9a-z.]+)(\+[a-z0-9.]+)?$/\1/p' "$lock" | grep -vE '^(nvidia-|cuda-|triton==)')
  # jax2onnx asks for an Orbax older than ours, which none of its modules imports: no resolver takes both. It is
  # therefore installed with --no-deps, as all locks are.
  case $* in *"--extra dev"*) pins+=$'\n'"jax2onnx==0.17.1" ;; esac
  printf '%s\n' '# Complete lock of the ranges in pyproject.toml; ./launch/lock.sh writes it.' \
    "$(LC_ALL=C sort <<< "$pins")" > "$lock"
}

if [ $# = 0 ]; then
  compile requirements.txt
  compile requirements-dev.txt --extra dev --constraint requirements.txt
else
  rm -f requirements-newest.txt
  compile requirements-newest.txt --extra dev
fi
