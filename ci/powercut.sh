#!/usr/bin/env bash
# Cuts the power of the disks that hold metadata, write-back log and store (ext4 on loop devices, shut down without flushing), under
# the writers of ci/crash.sh; after each cut mounts again, compares with what the crash contract allows, and runs
# `fsck --data`. Needs root.
#
#   ci/powercut.sh [file|minio] [--store file|minio] [--mode back|through] [--cuts N] [--seed S]
#                                                 (default: file, back, 20 cuts, seed 1)
#   ci/powercut.sh [--mode back|through] --no-fsync
#                                                 succeeds only if bytes were lost, when every fsync of the mount does
#                                                 nothing
#   ci/powercut.sh --store minio --mode through --no-fsync
#                                                 the same, when MinIO runs without MINIO_FS_OSYNC
#
# With minio, the store is a MinIO of its own (built if it is not there), on a disk of its own: it ends with the power.
#
# Last line: powercut: cuts=N acked=N lost=N invented=N. Fails unless lost and invented are 0 (above 0 with --no-fsync).

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

prepare_torture "$@"
need_root "$@"
make_work powercut
"$target/release/torture" powercut --kiseki "$kiseki" --work "$work" ${arguments[@]+"${arguments[@]}"} || { mount_log; exit 1; }
