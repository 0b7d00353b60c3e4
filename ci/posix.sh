#!/usr/bin/env bash
# Runs the public POSIX suites on a mounted volume: pjdfstest, fsx, fio's verifying jobs, stress-ng's file-system class.
#
#   ci/posix.sh file|minio [--short] [--only SUITE]...     (minio: one of its own; SUITE: pjdfstest, fsx, fio, stress-ng)
#
# Where a suite skips tests, or fails some for reasons of the kernel or of its own, an ext4 file system on a loop device is
# the measure, in the same run: what passes there must pass here. fsx makes 1,000,000 operations over ten seeds, a third
# of the seeds with O_DIRECT; with --short, 20,000 over four. fio's files are verified again after a remount. Needs root.
#
# Prints one table (suite, run, passed, failed, skipped, seconds). Last line: posix: failed=N

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

short=
store=
only=()
all=("$@")
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) print_usage; exit 0 ;;
    --short) short=1 ;;
    --only) only+=("${2:-}"); shift ;;
    file | minio) store=$1 ;;
    *) usage_error "unknown argument $1" ;;
    esac
    [ $# -gt 0 ] || usage_error "--only needs a suite"
    shift
done
[ -n "$store" ] || usage_error "the store is needed: file or minio"

if [ -z "${KISEKI_BUILT:-}" ]; then
    bash "$root/ci/dep.sh" test --without-minio
    [ "$store" = file ] || bash "$root/ci/minio.sh" build
fi
build kiseki
install_tool pjdfstest 0.2.2
install_tool fsx 0.3.2
need_root "${all[@]}"
make_work posix

wanted() { [ ${#only[@]} = 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }

# One row of the table. Arguments: suite, passed, failed, skipped, and when it began.
failures=0
row() {
    local run=$(($2 + $3 + $4))
    printf '%-12s %9d %9d %7d %8d %8d\n' "$1" "$run" "$2" "$3" "$4" $((SECONDS - $5)) >>"$work/table"
    failures=$((failures + $3))
}

# A folder of the given kind of file system, with room for a longest path: pjdfstest builds one out of parts of 127
# bytes below two folders of 11, and cannot if the rest is too small.
test_folder() {
    local dir=$1/suite
    while [ $(((4095 - ${#dir} - 22) % 127)) -lt 3 ]; do dir=${dir}e; done
    mkdir -m 755 "$dir"
    echo "$dir"
}

# All of it, also what needs a second file system and read-only remounts. These in a process of their own: the suite
# leaves files open for writing, upon which no file system can be made read-only.
pjdfstest() {
    local began=$SECONDS side preload= failed skipped
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
    sed 's/allow_remount = false/allow_remount = true/' "$work/pjdfstest.toml" >"$work/remount.toml"
    cc -shared -fPIC -O1 -o "$work/linkmax.so" "$root/ci/posix/linkmax.c"
    # It remounts with mount(8), which would look for a helper of this type of file system on the machine.
    mkdir "$work/bin"
    printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" >"$work/bin/mount"
    chmod 755 "$work/bin/mount"
    for side in ext4 mnt; do
        [ "$side" = ext4 ] || preload=$work/linkmax.so
        local dir
        dir=$(test_folder "$work/$side")
        pjdfstest_run "$side.all" "$preload" -c "$work/pjdfstest.toml" -p "$dir" -s "$work/second"
        pjdfstest_run "$side.remount" "$preload" -c "$work/remount.toml" -p "$dir" erofs
        # What the second run did was not skipped.
        awk 'NR == FNR { ran[$1] = $2; next } !($1 in ran)' "$work/$side.remount" "$work/$side.all" |
            sort - "$work/$side.remount" >"$work/pjdfstest.$side"
    done
    # A test that is skipped here and not there was not passed.
    join "$work/pjdfstest.ext4" "$work/pjdfstest.mnt" | awk '$3 == "FAILED" || $3 == "skipped" && $2 != "skipped" { print $1, $3 }' >"$work/failed"
    sed 's/^/pjdfstest: /' "$work/failed" >&2
    failed=$(wc -l <"$work/failed")
    skipped=$(awk '$2 == "skipped"' "$work/pjdfstest.mnt" | grep -vcxFf "$work/failed" || true)
    row pjdfstest $(($(wc -l <"$work/pjdfstest.mnt") - failed - skipped)) "$failed" "$skipped" "$began"
}

# Leaves the tests and what became of them in the file named first.
pjdfstest_run() {
    local out=$1 preload=$2
    shift 2
    # Its exit code only repeats that tests failed.
    PATH=$work/bin:$PATH LD_PRELOAD=$preload "$tools/bin/pjdfstest" "$@" >"$work/pjdfstest.out" 2>&1 || true
    grep -q '^Summary:' "$work/pjdfstest.out" || { tail -n 30 "$work/pjdfstest.out" >&2; die "pjdfstest did not end ($out)"; }
    awk 'NF == 2 && $2 ~ /^(ok|skipped|FAILED)$/' "$work/pjdfstest.out" | sort >"$work/$out"
}

# Each operation a good share. Past a block and not a multiple of one; all alignments. Several seeds at a time: most of a
# seed's time is waiting, as a tenth of its operations are fsyncs of all that was written.
fsx() {
    local began=$SECONDS seed ops=100000 seeds=10 failed=0 passed=0
    [ -z "$short" ] || { ops=5000; seeds=4; }
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
sendfile = 2
posix_fadvise = 1
posix_fallocate = 2
punch_hole = 3
copy_file_range = 3
TOML
    cc -shared -fPIC -O1 -o "$work/odirect.so" "$root/ci/posix/odirect.c"
    for ((seed = 1; seed <= seeds; seed++)); do
        [ "$(jobs -rp | wc -l)" -lt "$(nproc)" ] || wait -n || true
        fsx_seed "$seed" "$ops" &
    done
    wait
    for ((seed = 1; seed <= seeds; seed++)); do
        if [ -e "$work/fsx-$seed.passed" ]; then
            passed=$((passed + ops))
        else
            failed=$((failed + 1))
            echo "fsx: seed $seed failed:" >&2
            tail -n 30 "$work/fsx-$seed.log" >&2
        fi
    done
    row fsx "$passed" "$failed" 0 "$began"
}

# Arguments: the seed, operations. A third of the seeds use O_DIRECT.
fsx_seed() {
    local kind=buffered preload=
    [ $(($1 % 3)) != 0 ] || { kind=O_DIRECT preload=$work/odirect.so; }
    mkdir "$work/artifacts-$1"
    say "fsx: $2 operations, seed $1, $kind"
    LD_PRELOAD=$preload "$tools/bin/fsx" -q -S "$1" -N "$2" -f "$work/fsx.toml" -P "$work/artifacts-$1" \
        "$work/mnt/fsx-$1" >"$work/fsx-$1.log" 2>&1 || return 0
    rm -f "$work/mnt/fsx-$1"
    touch "$work/fsx-$1.passed"
}

# name, and what fio is told. Each job writes files of its own, reads them back and compares checksums.
fio_jobs=(
    "sequential --rw=write --bs=128k --numjobs=4"
    "random --rw=randwrite --bsrange=4k-64k --numjobs=4"
    "random-direct --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --numjobs=2"
    "sequential-direct --rw=write --bs=1m --direct=1 --ioengine=libaio --iodepth=4 --numjobs=2"
    "random-mmap --rw=randwrite --bs=4k --ioengine=mmap --numjobs=2"
    "random-fsync --rw=randwrite --bs=16k --fsync=32 --numjobs=2 --size-part=4"
    "random-small --rw=randwrite --bs=512 --numjobs=2 --size-part=16"
)

# Arguments: a job, and more for fio.
fio_job() {
    local name options size=64 part
    read -r name options <<<"$1"
    shift
    [ -z "$short" ] || size=16
    part=$(sed -n 's/.*--size-part=\([0-9]*\).*/\1/p' <<<"$options")
    options=${options/--size-part=*/}
    mkdir -p "$work/mnt/fio/$name"
    # shellcheck disable=SC2086  # several options
    (cd "$work" && fio --name="$name" --directory="$work/mnt/fio/$name" --size=$((size / ${part:-1}))m $options \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 "$@") >"$work/fio.out" 2>&1 && return 0
    echo "fio: $name $* failed:" >&2
    tail -n 20 "$work/fio.out" >&2
    return 1
}

fio_suite() {
    local began=$SECONDS job passed=0 failed=0 phase
    for phase in "" --verify_only=1; do
        [ -z "$phase" ] || remount
        for job in "${fio_jobs[@]}"; do
            say "fio: $job $phase"
            # shellcheck disable=SC2086  # absent, or one option
            if fio_job "$job" $phase; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
        done
    done
    rm -rf "$work/mnt/fio"
    row fio "$passed" "$failed" 0 "$began"
}

remount() {
    unmount_volume
    check_volume
    mount_volume
}

# One stressor in a folder: 0 passed, 3 or 4 cannot run here, anything else failed (stress-ng(1), EXIT STATUS).
stress_one() {
    local name=$1 side=$2 seconds=$3 status=0
    mkdir -p "$work/$side/stress-$name"
    timeout -k 5 $((seconds + 60)) stress-ng --"$name" 2 --timeout "${seconds}s" --verify --temp-path "$work/$side/stress-$name" \
        >"$work/stress-$name.$side" 2>&1 || status=$?
    rm -rf "$work/$side/stress-$name" 2>/dev/null || { chattr -R -i -a "$work/$side/stress-$name"; rm -rf "$work/$side/stress-$name"; }
    ! grep -q 'stress-ng: .*skipp' "$work/stress-$name.$side" || [ "$status" != 0 ] || status=4
    echo "$status" >"$work/stress-$name.$side.status"
}

# What passes on ext4 must pass here; what does not is listed, and counts as skipped. So does what asks for a request
# that FUSE has not: the map of a file's extents.
fuse_lacks=(fiemap)
stress_suite() {
    local began=$SECONDS name seconds=10 passed=0 failed=0 skipped=0 there here
    [ -z "$short" ] || seconds=1
    for name in $(stress-ng --class 'filesystem?' 2>&1 | sed -n "s/^class 'filesystem' stressors: //p"); do
        stress_one "$name" ext4 "$seconds" & local other=$!
        stress_one "$name" mnt "$seconds"
        wait "$other"
        there=$(cat "$work/stress-$name.ext4.status") here=$(cat "$work/stress-$name.mnt.status")
        case $there,$here in
        0,0) passed=$((passed + 1)) ;;
        0,4)
            if [[ " ${fuse_lacks[*]} " == *" $name "* ]]; then
                skipped=$((skipped + 1))
                echo "stress-ng: $name: FUSE has no such request" >&2
            else
                failed=$((failed + 1))
                echo "stress-ng: $name is skipped here, and passes on ext4" >&2
            fi
            ;;
        0,*)
            failed=$((failed + 1))
            echo "stress-ng: $name failed ($here), and passes on ext4:" >&2
            tail -n 12 "$work/stress-$name.mnt" >&2
            ;;
        *)
            skipped=$((skipped + 1))
            echo "stress-ng: $name does not pass on ext4 ($there; here $here): $(grep -m1 -E 'fail|skipp|error|unable|inval' "$work/stress-$name.ext4" || true)" >&2
            ;;
        esac
    done
    row stress-ng "$passed" "$failed" "$skipped" "$began"
}

for side in ext4 second; do
    truncate -s 4G "$work/$side.img"
    mkfs.ext4 -q -E nodiscard "$work/$side.img"
    mkdir "$work/$side"
    mount -o loop "$work/$side.img" "$work/$side"
done
format_volume "$store"
mount_volume
printf '%-12s %9s %9s %7s %8s %8s\n' suite run passed failed skipped seconds >"$work/table"
! wanted pjdfstest || pjdfstest
! wanted fsx || fsx
! wanted fio || fio_suite
! wanted stress-ng || stress_suite
[ "$failures" = 0 ] || mount_log
unmount_volume
check_volume
cat "$work/table"
echo "posix: failed=$failures"
[ "$failures" = 0 ]
