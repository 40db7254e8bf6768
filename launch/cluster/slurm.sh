#!/usr/bin/env bash
#SBATCH --job-name=jaxvol
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxvol-%j.log
# One training on Slurm, for as many jobs as it takes: five minutes before the time limit it is
# asked to save, and the job goes back into the queue.  One process per node, or per GPU: the processes of
# srun find one another.
#
#   sbatch launch/cluster/slurm.sh --config=configs/fno.py [arguments of jaxvol.main]
#   sbatch --nodes=4 --time=8:00:00 launch/cluster/slurm.sh --config=configs/fno.py
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 launch/cluster/slurm.sh --config=...
#
# Submit it from the checkout, after launch/install.sh has made .venv there (or set PYTHON): Slurm
# runs a copy of this file, which cannot know where it came from.  MAX_REQUEUES (default 100) ends
# what would go round for ever.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the checkout}"
python=${PYTHON:-$PWD/.venv/bin/python}
if [[ ! -x $python ]]; then
  echo "slurm.sh: there is no $python; run launch/install.sh on the login node first," \
    "or set PYTHON" >&2
  exit 1
fi

# --signal reaches the tasks of srun by itself; a signal to this script (scancel --batch, a
# pre-emption) is handed on
step=''
forward() { [[ -z $step ]] || kill -s "$1" "$step" 2>/dev/null || true; }
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# one task that fails ends the others: they would wait for it
srun --kill-on-bad-exit=0 --wait=120 "$python" -m jaxvol.main "$@" &
step=$!
status=0
while true; do
  wait "$step" && status=0 || status=$?
  # wait ends with every trapped signal: is srun still there?
  kill -0 "$step" 2>/dev/null || break
done

# srun's status is the highest of its tasks; a task that was killed by the time limit while it
# compiled has 128 + its signal
case $status in
  75|138|143) ;;
  *) exit "$status" ;;
esac
if (( ${SLURM_RESTART_COUNT:-0} >= ${MAX_REQUEUES:-100} )); then
  echo "slurm.sh: unfinished after ${SLURM_RESTART_COUNT} requeues; submit it again to go on" >&2
  exit "$status"
fi
echo "slurm.sh: saved but unfinished (status $status), requeueing job $SLURM_JOB_ID" >&2
scontrol requeue "$SLURM_JOB_ID"
