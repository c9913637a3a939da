#!/usr/bin/env bash
# From a bare checkout to a comparison: installs, builds the embedded dataset, trains the same tiny model
# without compression and with InTI, and reports both.
#
#   ./launch/quickstart.sh [SEED] [--config.key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
ensure_venv requirements.txt

seed=0
case ${1:-} in
  ''|--*) ;;
  *[!0-9]*) echo "error: SEED should be a whole number, not '$1'" >&2; exit 2 ;;
  *) seed=$1; shift ;;
esac

python -m inti_jax.prepare motion_digits --data_dir data
for compression in none inti; do
  python -m inti_jax.main --config "configs/quickstart.py:compression=$compression,seed=$seed" \
    --workdir "runs/quickstart-$seed/$compression" "$@"
done
python -m inti_jax.report "runs/quickstart-$seed/none" "runs/quickstart-$seed/inti" \
  --out "runs/quickstart-$seed" --title "motion_digits, seed $seed"
echo "report: runs/quickstart-$seed/report.html"
