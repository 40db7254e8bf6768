#!/usr/bin/env bash
# Makes or updates the virtual environment .venv of this checkout; does nothing if it is up to date.
#
#   launch/install.sh [extra,extra...]        extras of setup.cfg: test, nbody, wandb, tpu
#
# Environment: PYTHON=/path/to/python3 chooses the interpreter of a new .venv;
#              JAX_PLATFORMS=cpu leaves out the CUDA build of JAX on a machine with a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
extras=${1:-}
python="$root/.venv/bin/python"
# There while .venv is being changed; where it is there at the start, .venv is made anew.
half_done="$root/.venv/half-done"

say() { printf 'jaxvol: %s\n' "$*" >&2; }

suitable() {    # an interpreter that starts, is new enough and can make virtual environments
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    if suitable "$PYTHON"; then printf '%s\n' "$PYTHON"; return; fi
    say "PYTHON=$PYTHON is not a Python 3.11 or newer with the modules venv and ensurepip."
    return 1
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
    if suitable "$candidate"; then printf '%s\n' "$candidate"; return; fi
  done
  say "found no Python 3.11 or newer that can make virtual environments" \
    "(python3 here: $(python3 --version 2>&1 || true))."
  say "Install one (Debian and Ubuntu: apt install python3 python3-venv), or name it:" \
    "PYTHON=/path/to/python3 $0"
  return 1
}

cuda_extra() {  # cuda13 or cuda12 by the driver's version; nothing without an NVIDIA device
  local driver
  case ${JAX_PLATFORMS:-} in ''|*cuda*|*gpu*) ;; *) return 0 ;; esac
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null \
    | head -n 1) || driver=''
  if [[ ! $driver =~ ^[0-9]+\. ]]; then
    if [[ ! -e /dev/nvidia0 ]]; then return 0; fi
    driver=$(sed -n 's/.*Module  *\([0-9][0-9]*\.[0-9.]*\).*/\1/p' \
      /proc/driver/nvidia/version 2>/dev/null) || driver=''
  fi
  driver=${driver%%.*}
  # CUDA 13 needs driver 580
  if (( ${driver:-0} >= 580 )); then printf 'cuda13'; else printf 'cuda12'; fi
}

complain_without_gpu() {
  local backend
  backend=$(XLA_PYTHON_CLIENT_PREALLOCATE=false \
    "$python" -c 'import jax; print(jax.default_backend())' 2>&1) || true
  if [[ ${backend##*$'\n'} == gpu ]]; then return 0; fi
  say '******************************************************************************************'
  say 'THIS MACHINE HAS AN NVIDIA GPU AND JAX CANNOT USE IT: everything will run on the slow CPU.'
  say "JAX says: ${backend:-nothing}"
  say "Look at nvidia-smi (JAX needs driver 525 or newer), then: rm -rf '$root/.venv'" \
    'and run this again.'
  say 'On purpose? JAX_PLATFORMS=cpu in the environment silences this.'
  say '******************************************************************************************'
}

mkdir -p .cache
# two jobs, one checkout
if command -v flock >/dev/null; then exec 9>.cache/install.lock; flock 9; fi

usable() { suitable "$python" && "$python" -m pip --version >/dev/null 2>&1; }

if [[ -e $half_done ]] || ! usable; then
  base=$(find_python)
  if [[ -e .venv ]]; then
    say 'found an unfinished or broken .venv; making it anew'
  else
    say "making .venv with $base"
  fi
  rm -rf .venv
  mkdir .venv
  : >"$half_done"
  "$base" -m venv .venv
fi

cuda=$(cuda_extra)
missing=no
wanted=$(cksum setup.cfg pyproject.toml; printf '%s\n' "$root" "$cuda")
for extra in '' ${extras//,/ }; do
  if [[ $(cat ".venv/installed-$extra" 2>/dev/null || true) != "$wanted" ]]; then missing=yes; fi
done
if [[ $missing == yes ]]; then
  all=$extras${cuda:+${extras:+,}$cuda}
  say "installing jaxvol${all:+ with $all} into .venv (once; about a minute, longer with CUDA)"
  : >"$half_done"
  "$python" -m pip install --quiet --disable-pip-version-check --editable ".${all:+[$all]}" || {
    say 'the installation failed, for the reason above (no network? a full disk?);' \
      'the same command starts it afresh.'
    exit 1
  }
  for extra in '' ${extras//,/ }; do printf '%s\n' "$wanted" >".venv/installed-$extra"; done
fi
rm -f "$half_done"
if [[ -n $cuda ]]; then complain_without_gpu; fi
