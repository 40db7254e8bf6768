#!/usr/bin/env bash
# N processes on this machine that train as one: CPU with gloo, or one GPU each.
#
#   launch/cluster/multihost.sh N [arguments of jaxvol.main]
#   launch/cluster/multihost.sh 2 --config=configs/fno.py:quick
#
# Again, until it is finished, while the processes end with 75 (saved but unfinished).  The status
# is that of the first process that failed; when one dies the others have 90 seconds to end by
# themselves.  RERUN=0 runs once; PYTHON chooses the interpreter.
set -euo pipefail
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/cluster/multihost.sh N [arguments of jaxvol.main]" >&2
  exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
number=$1
shift
if [[ -z ${PYTHON:-} ]]; then bash launch/install.sh nbody; PYTHON=.venv/bin/python; fi
pids=()

stop() {        # a signal to this script is one to all its processes
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'RERUN=0; stop TERM' TERM INT
trap 'RERUN=0; stop USR1' USR1

await() {       # bash's wait ends with every signal that is trapped
  local status=0
  while true; do
    wait -n -p ended "${pids[@]}" && status=0 || status=$?
    if [[ -n ${ended:-} ]]; then return "$status"; fi
    if (( status == 127 )); then return 127; fi
  done
}

once() {
  local port worst=0 status i deadline=0
  port=$("$PYTHON" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
  pids=()
  for (( i = 0; i < number; i++ )); do
    JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$number JAX_PROCESS_ID=$i \
      JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo "$PYTHON" -m jaxvol.main "$@" &
    pids+=($!)
  done
  while (( ${#pids[@]} )); do
    ended=''
    await && status=0 || status=$?
    if (( status == 127 )) && [[ -z $ended ]]; then break; fi
    local left=()
    for pid in "${pids[@]}"; do if [[ $pid != "$ended" ]]; then left+=("$pid"); fi; done
    pids=("${left[@]+"${left[@]}"}")
    if (( status && (worst == 0 || worst == 75) )); then worst=$status; fi
    if (( status )); then echo "multihost.sh: process $ended ended with status $status" >&2; fi
    if (( status && status != 75 && deadline == 0 && ${#pids[@]} )); then
      echo "multihost.sh: the others have 90 seconds to end" >&2
      deadline=1
      ( sleep 90; kill -KILL "${pids[@]}" || true ) >/dev/null 2>&1 &
      reaper=$!
    fi
  done
  if [[ -n ${reaper:-} ]]; then kill "$reaper" 2>/dev/null || true; reaper=''; fi
  return "$worst"
}

while true; do
  once "$@" && status=0 || status=$?
  if (( status > 128 )); then
    echo "multihost.sh: a process was killed (signal $((status - 128))); what was saved is sound," \
      "the same command goes on" >&2
  fi
  if (( status != 75 )) || [[ ${RERUN:-1} == 0 ]]; then exit "$status"; fi
  echo "multihost.sh: saved but unfinished, starting again" >&2
done
