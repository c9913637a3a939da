#!/usr/bin/env bash
# Builds the documentation site into site/, with warnings as errors; with `serve`, shows it while pages change.
#
#   ./launch/docs.sh [serve]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
ensure_venv requirements-dev.txt

PYTHONPATH=. python launch/reference.py
case ${1:-build} in
  build) zensical build --clean --strict ;;
  serve) zensical serve ;;
  *) echo "error: give nothing or serve, not '$1'" >&2; exit 2 ;;
esac
