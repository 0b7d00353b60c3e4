#!/usr/bin/env bash
# Runs pjdfstest, the POSIX file system test suite, on a mounted volume, and lists what failed. Needs root.
#
#   ci/pjdfstest.sh [NAME...]     all tests, or those whose names contain NAME
#
# Last line: pjdfstest: passed=N failed=N skipped=N. Fails under 340 passed (of 398; 15 cannot run on Linux).

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) print_usage; exit 0 ;;
esac
least=340
[ $# = 0 ] || least=0

build kiseki
install_tool pjdfstest 0.2.2
need_root "$@"
make_work pjdfstest

cat >"$work/pjdfstest.toml" <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
TOML

format_volume
mount_volume
# The suite builds a longest path out of parts of 127 bytes below two folders of 11, and cannot if the rest is too small.
dir=$work/mnt/suite
while [ $(((4095 - ${#dir} - 22) % 127)) -lt 3 ]; do dir=${dir}e; done
mkdir -m 755 "$dir"
# Its exit code only repeats that tests failed; its summary says how many.
"$tools/bin/pjdfstest" -c "$work/pjdfstest.toml" -p "$dir" "$@" >"$work/out" 2>&1 || true
rm -rf "$dir"
unmount_volume
check_volume

read -r failed skipped passed < <(sed -n 's/^Summary: \([0-9]*\) failed, \([0-9]*\) skipped, \([0-9]*\) passed,.*/\1 \2 \3/p' "$work/out") || {
    tail -n 30 "$work/out" >&2
    die "the suite did not end"
}
grep -E 'FAILED$' "$work/out" | awk '{ print "failed: " $1 }' | sort || true
echo "pjdfstest: passed=$passed failed=$failed skipped=$skipped"
[ "$passed" -ge "$least" ] || die "fewer than $least passed"
