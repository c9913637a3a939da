#!/usr/bin/env bash
# From a bare checkout: installs, then lint, types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
ensure_venv requirements-dev.txt
ensure_chromium

echo "ruff"
ruff check .
ruff format --check .
echo "codespell"
codespell
echo "mypy"
mypy
echo "import-linter"
lint-imports --no-cache --no-logo
echo "pytest"
# Workers and the processes that tests start find what the first of them made of the sources.
unset PYTHONDONTWRITEBYTECODE
# On eight simulated devices, see tests/conftest.py. One process more than cores: some tests wait for others.
pytest --numprocesses $(($(nproc) + 1)) --maxprocesses 4 --dist worksteal "$@"
