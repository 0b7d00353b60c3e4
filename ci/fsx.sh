#!/usr/bin/env bash
# Runs fsx (random reads, writes, maps, truncates, ... on one file, each read compared) on a mounted volume.
#
#   ci/fsx.sh OPS SEED...
#
# Last line: fsx: ops=N seeds=N failed=N

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) print_usage; exit 0 ;;
'' | *[!0-9]*) usage_error "OPS and at least one SEED are needed" ;;
esac
ops=$1
shift
[ $# -gt 0 ] || usage_error "at least one SEED is needed"

build kiseki
install_tool fsx 0.3.2
make_work fsx

# Past a block and not a multiple of one; operations of all alignments, up to a quarter of a block.
cat >"$work/fsx.toml" <<'TOML'
flen = 9000000

[opsize]
max = 1048576
min = 0
align = 1

[weights]
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 3
close_open = 1
invalidate = 1
fsync = 1
fdatasync = 1
sendfile = 1
posix_fadvise = 1
posix_fallocate = 2
punch_hole = 3
copy_file_range = 3
TOML

format_volume
mount_volume
failed=0
for seed in "$@"; do
    mkdir -p "$work/artifacts-$seed"
    say "fsx: $ops operations, seed $seed"
    if ! "$tools/bin/fsx" -q -S "$seed" -N "$ops" -f "$work/fsx.toml" -P "$work/artifacts-$seed" "$work/mnt/fsx-$seed" \
        >"$work/fsx-$seed.log" 2>&1; then
        failed=$((failed + 1))
        echo "fsx: seed $seed failed:" >&2
        tail -n 30 "$work/fsx-$seed.log" >&2
    fi
done
[ "$failed" = 0 ] || mount_log
unmount_volume
check_volume
echo "fsx: ops=$ops seeds=$# failed=$failed"
[ "$failed" = 0 ]
