#!/usr/bin/env bash
# Runs a command of this checkout on every worker of a TPU VM that exists already:
#
#   bash scripts/tpu_vm.sh NAME ZONE COMMAND...
#   bash scripts/tpu_vm.sh --queued NAME ZONE COMMAND...     # a queued resource: every worker of every slice
#
# It copies the files that git knows or does not ignore to ~/jaxsft of each worker, installs '.[tpu,gcs]' into
# ~/jaxsft/.venv, and runs COMMAND in ~/jaxsft with that environment. It creates and deletes no TPU. The project is
# gcloud's own (gcloud config set project ..., or CLOUDSDK_CORE_PROJECT).
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 1
}

kind=tpu-vm
everywhere=(--worker=all)
if [ "${1:-}" = --queued ]; then
  kind=queued-resources
  everywhere=(--worker=all --node=all)
  shift
fi
[ $# -ge 3 ] || fail "give the TPU's name, its zone and a command: bash scripts/tpu_vm.sh [--queued] NAME ZONE COMMAND..."
case "$1$2" in *[!a-z0-9-]*) fail "'$1' in zone '$2' is no name and zone of a TPU; both are of a-z, 0-9 and '-'." ;; esac
name=$1 zone=$2
shift 2
command -v gcloud >/dev/null || fail "gcloud is not on PATH; install the Google Cloud CLI, then run 'gcloud auth login'."

cd "$(dirname "$0")/.."
git rev-parse --is-inside-work-tree >/dev/null 2>&1 || fail "$PWD is no git checkout, so what to copy is not known; clone it."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git ls-files -z --cached --others --exclude-standard --deduplicate |
  while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
  tar --create --gzip --null --files-from=- --file="$folder/jaxsft.tar.gz"

on_workers() { # what it does, command
  echo "$1 on every worker of $name ($zone)"
  gcloud compute tpus "$kind" ssh "$name" --zone="$zone" "${everywhere[@]}" --command="$2"
}

echo "copying $(git rev-parse --short HEAD) and local changes to every worker of $name ($zone)"
gcloud compute tpus "$kind" scp "$folder/jaxsft.tar.gz" "$name:jaxsft.tar.gz" --zone="$zone" "${everywhere[@]}"

# shellcheck disable=SC2016 # expanded on the worker
on_workers "installing jaxsft[tpu]" 'set -e
PATH=$HOME/.local/bin:$PATH
mkdir -p jaxsft && tar -xzf jaxsft.tar.gz -C jaxsft && cd jaxsft
if [ ! -x .venv/bin/python ]; then
  for python in python3.13 python3.12 python3.11 python3 none; do
    $python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && break
  done
  if [ $python = none ]; then echo "error: $(hostname) has no Python 3.11 or newer; see docs/launch.md." >&2; exit 1; fi
  $python -m venv .venv
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[tpu,gcs]"'

on_workers "running: $*" "cd jaxsft && source .venv/bin/activate && $(printf '%q ' "$@")"
echo "done: $* on every worker of $name"
