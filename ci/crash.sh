#!/usr/bin/env bash
# Kills the mount process (kill -9) in the middle of writers that fsync, rename over, truncate and hold unlinked files;
# after each kill mounts again, compares with what the crash contract allows, and runs `fsck --data`.
#
#   ci/crash.sh [file] [--kills N] [--seed S]     (default: 100 kills, seed 1)
#
# Last line: crash: kills=N acked=N lost=N invented=N. Fails unless lost and invented are 0, at least 50 promises a kill
# were held, and puts, commits, truncates and renames over a name were each hit by kills.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) print_usage; exit 0 ;;
file) shift ;;
esac
build kiseki torture
make_work crash
"$target/release/torture" crash --kiseki "$kiseki" --work "$work" "$@" || { mount_log; exit 1; }
