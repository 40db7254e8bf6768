#!/usr/bin/env bash
# Four models at equal size and budget, several seeds, one table next to the trivial predictors.
#
#   launch/studies/benchmark.sh [SIZE] [SEED ...] [--config.a.b=v ...]
#   launch/studies/benchmark.sh small 0 1 2
#
# Runs are in runs/benchmark-<model>-<size>-seed<n>, the table and pictures in
# runs/benchmark-<size>/comparison; what is finished is not repeated.  The models' pre-flights are
# left out: they do not change the result (set --config.preflight.run=True for them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
size=small
if (( $# )) && [[ $1 =~ ^(small|base|large)$ ]]; then size=$1; shift; fi
seeds=()
while (( $# )) && [[ $1 != --* ]]; do seeds+=("$1"); shift; done
(( ${#seeds[@]} )) || seeds=(0 1 2)
bash launch/install.sh nbody
python=.venv/bin/python
runs=''
for seed in "${seeds[@]}"; do
  for model in fno vnet vit3d pix2pixcc; do
    run=runs/benchmark-$model-$size-seed$seed
    if [[ ! -f $run/evaluation/metrics.json ]]; then
      "$python" -m jaxvol.main --config="configs/benchmark.py:$model-$size" --workdir="$run" \
        --config.seed="$seed" --config.preflight.run=False "$@"
    fi
    runs=$runs${runs:+,}$run
  done
done
"$python" -m jaxvol.main --config="configs/benchmark.py:fno-$size" --mode=compare \
  --config.compare.runs="$runs" --workdir="runs/benchmark-$size"
