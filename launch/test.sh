#!/usr/bin/env bash
# The tests from a clean clone: installs into .venv (see install.sh), then runs pytest.
#
#   launch/test.sh [arguments of pytest]           e.g. tests/training/test_step.py -k ema -n 0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh test,nbody
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
# one worker per two forced-device meshes is enough: more than four only compete for memory
workers=$(.venv/bin/python -c 'import os; print(min(4, os.cpu_count() or 1))')
# files in alphabetical order: by number of tests, files with a few long ones would come last and
# one worker would wait for the other
exec .venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
