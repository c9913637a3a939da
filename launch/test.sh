#!/usr/bin/env bash
# From a bare checkout: installs, then lint, types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
# No test imports most of what is installed, and to compile it takes as long as to fetch it. The first process that
# imports a module compiles it, for the others too.
unset PYTHONDONTWRITEBYTECODE
ensure_venv requirements-dev.txt --no-compile
ensure_chromium

echo "ruff"
ruff check .
ruff format --check .
echo "codespell"
codespell
echo "import-linter"
lint-imports --no-cache --no-logo
# In a new checkout mypy takes one core for a minute, so it runs beside the tests, and says what it found after them.
types=$(mktemp)
mypy > "$types" 2>&1 &
mypy=$!
trap 'kill "$mypy" 2> /dev/null || true; rm -f "$types"' EXIT
echo "pytest, and mypy beside it"
status=0
# On eight simulated devices, see tests/conftest.py. One process more than cores: some tests wait for others.
pytest --numprocesses $(($(nproc) + 1)) --maxprocesses 4 --dist worksteal "$@" || status=$?
echo "mypy"
wait "$mypy" || status=1
cat "$types"
exit "$status"
