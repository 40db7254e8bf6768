#!/usr/bin/env bash
# The main job from a clean clone: installs into .venv (see install.sh), then trains and evaluates.
#
#   launch/quickstart.sh [arguments of jaxvol.main]       default: --config=configs/fno.py
#
# Relative paths in the arguments start at the checkout, wherever this is called from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Glibc asks for huge pages then: fewer page faults for the large arrays of a CPU run
# (docs/performance.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
if (( $# == 0 )); then set -- --config=configs/fno.py; fi
bash launch/install.sh nbody
exec .venv/bin/python -m jaxvol.main "$@"
