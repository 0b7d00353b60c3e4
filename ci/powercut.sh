#!/usr/bin/env bash
# Cuts the power of the disk that holds metadata and store (ext4 on a loop device, shut down without flushing), under
# the writers of ci/crash.sh; after each cut mounts again, compares with what the crash contract allows, and runs
# `fsck --data`. Needs root.
#
#   ci/powercut.sh [--cuts N] [--seed S]     (default: 20 cuts, seed 1)
#   ci/powercut.sh --no-fsync                every fsync of the mount does nothing: succeeds only if bytes were lost
#
# Last line: powercut: cuts=N acked=N lost=N invented=N. Fails unless lost and invented are 0 (above 0 with --no-fsync).

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) print_usage; exit 0 ;;
esac
build kiseki torture
need_root "$@"
make_work powercut
"$target/release/torture" powercut --kiseki "$kiseki" --work "$work" "$@" || { mount_log; exit 1; }
