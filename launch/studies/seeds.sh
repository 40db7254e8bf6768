#!/usr/bin/env bash
# One config, several seeds, one table: mean and deviation over seeds next to the baselines.
#
#   launch/studies/seeds.sh CONFIG SEED [SEED ...] [--config.a.b=v ...]
#   launch/studies/seeds.sh configs/fno.py:quick 0 1 2
#
# Runs are in runs/<config>-seed<n>, the table and pictures in runs/<config>-seeds/comparison;
# finished runs are not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# Glibc asks for huge pages then: fewer page faults for the large arrays of a CPU run
# (docs/performance.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
config=$1
shift
seeds=()
while (( $# )) && [[ $1 != --* ]]; do seeds+=("$1"); shift; done
bash launch/install.sh nbody
name=$(basename "${config%%:*}" .py)
[[ $config == *:* ]] && name=$name-${config#*:}
runs=''
for seed in "${seeds[@]}"; do
  run=runs/$name-seed$seed
  .venv/bin/python -m jaxvol.main --config="$config" --config.seed="$seed" --workdir="$run" "$@"
  runs=$runs${runs:+,}$run
done
.venv/bin/python -m jaxvol.main --config="$config" --mode=compare --config.compare.runs="$runs" \
  --workdir="runs/$name-seeds"
