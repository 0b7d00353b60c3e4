#!/usr/bin/env bash
# Kills the mount process (kill -9) in the middle of writers that fsync, rename over, truncate and hold unlinked files;
# after each kill mounts again, compares with what the crash contract allows, and runs `fsck --data`.
#
#   ci/crash.sh [file|minio] [--store file|minio] [--mode back|through] [--kills N] [--seed S]
#                                                                 (default: file, back, 100 kills, seed 1)
#
# With minio, the store is a MinIO of its own (built if it is not there), which goes on while mounts are killed.
#
# Last line: crash: kills=N acked=N lost=N invented=N. Fails unless lost and invented are 0, at least 50 promises a kill
# were held, and puts, commits, truncates and renames over a name were each hit by kills.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

prepare_torture "$@"
make_work crash
"$target/release/torture" crash --kiseki "$kiseki" --work "$work" ${arguments[@]+"${arguments[@]}"} || { mount_log; exit 1; }
