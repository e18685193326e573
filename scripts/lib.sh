# Shared by all scripts: `source` it after `set -euo pipefail`.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where cargo builds: CARGO_TARGET_DIR, or the clone's own target/.
target_dir=${CARGO_TARGET_DIR:-$root/target}
export CARGO_TARGET_DIR=$target_dir

# The built command.
# shellcheck disable=SC2034 # Used by the scripts.
kvorum_bin=$target_dir/debug/kvorum

# say WORDS...: a section's title.
say() {
  if [ -t 1 ]; then printf '\n\033[1m== %s\033[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi
}

# fail WORDS...: an error, and the end.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# need COMMAND HINT: ends with the hint where the command is not there.
need() {
  command -v "$1" >/dev/null 2>&1 || fail "$1 is missing: $2"
}

# help_if_asked "$@": prints the script's own head comment for --help, and ends.
help_if_asked() {
  case ${1:-} in
    -h | --help)
      sed -n '2,/^[^#]/{s/^# \{0,1\}//;t print;d;:print;p}' "$0"
      exit 0
      ;;
  esac
}
