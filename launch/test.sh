#!/usr/bin/env bash
# From a bare checkout: installs, then lint, types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
ensure_venv requirements-dev.txt

echo "ruff"
ruff check .
ruff format --check .
echo "mypy"
mypy
echo "pytest"
# One simulated device a shard: the same code path as on an accelerator with eight.
XLA_FLAGS="--xla_force_host_platform_device_count=8 ${XLA_FLAGS:-}" JAX_PLATFORMS=cpu pytest "$@"
