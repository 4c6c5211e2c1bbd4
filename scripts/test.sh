#!/usr/bin/env bash
# Sets up (a virtual environment if none is active), then lints and runs the whole default test suite.
# Arguments go to pytest: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
  python="${PYTHON:-python3}"
  [ -d .venv ] || "$python" -m venv .venv
  # shellcheck disable=SC1091
  source .venv/bin/activate
fi
python -m pip install --quiet --disable-pip-version-check --editable '.[test]'

ruff check .
ruff format --check .
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
exec python -m pytest --numprocesses "${JAXSFT_TEST_WORKERS:-2}" --dist worksteal --max-worker-restart 0 "$@"
