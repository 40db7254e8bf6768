#!/usr/bin/env bash
# Writes launch/environments/requirements-<version>.txt: what a clean installation resolves to on
# this Python (CPU build of JAX).
#
#   PYTHON=python3.11 launch/environments/lock.sh
#
# To install from it:
#   pip install -r launch/environments/requirements-3.11.txt && pip install --no-deps -e .
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base=${PYTHON:-python3}
version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$base" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --editable '.[test,nbody]'
{
  printf '# Made by launch/environments/lock.sh: '
  printf 'jaxvol[test,nbody] on Python %s, CPU build of JAX\n' "$version"
  "$scratch/venv/bin/python" -m pip freeze --exclude jaxvol --exclude-editable
} >"$scratch/lock"
if grep -n '://\| @ ' "$scratch/lock"; then
  echo "lock.sh: a package did not come from the index (above)" >&2
  exit 1
fi
cp "$scratch/lock" "launch/environments/requirements-$version.txt"
echo "wrote launch/environments/requirements-$version.txt: $(grep -c == "$scratch/lock") packages"
