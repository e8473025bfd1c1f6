#!/usr/bin/env bash
# Creates the virtual environment. Look-ups of packages sometimes fail for a moment: installs try again.
set -euo pipefail

retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return 0
    echo "attempt $attempt of 5 failed: $*" >&2
    sleep $((attempt * 5))
  done
  return 1
}

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
retry "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
retry "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt --group dev --editable '.[all]'
