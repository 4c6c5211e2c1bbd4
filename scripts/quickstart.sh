#!/usr/bin/env bash
# Sets up (a virtual environment if none is active), then shows the whole way on the embedded model: it is measured,
# fine-tuned fully and with LoRA, measured again, and a report is written.
# bash scripts/quickstart.sh [FOLDER]   (default: runs/quickstart; broken off, the same command goes on)
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-runs/quickstart}"

if [ -z "${VIRTUAL_ENV:-}" ]; then
  python="${PYTHON:-python3}"
  if [ ! -d .venv ]; then
    echo "== a virtual environment in .venv"
    "$python" -m venv .venv
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
fi
echo "== installing jaxsft and what it needs (a minute or two the first time)"
python -m pip install --quiet --disable-pip-version-check --editable .

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"  # so small a model is at home there
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
step() { # says what is run, and runs it
  printf '\n== %s\n$ python %s\n' "$1" "${*:2}"
  python "${@:2}"
}
measure() { # measures a model unless that is done
  [ -f "$3" ] || step "$1" scripts/evaluate.py --config=configs/world/suite.py --config.reference=world:base \
    --model="$2" --output="$3"
}

measure "What the model knows before" world:base "$folder/base/evaluation.json"
step "Full fine-tuning" scripts/train.py --config=configs/world/full.py --workdir="$folder/full"
measure "What it knows now" "$folder/full" "$folder/full/evaluation.json"
step "LoRA" scripts/train.py --config=configs/world/lora.py --workdir="$folder/lora"
measure "What it knows with LoRA" "$folder/lora" "$folder/lora/evaluation.json"
step "The report" scripts/report.py --runs "$folder/base" "$folder/full" "$folder/lora" --output="$folder/report.html"
