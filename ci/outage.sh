#!/usr/bin/env bash
# Takes the object store away in the middle of a copy, and checks that nothing waits for it that need not, and that
# nothing is lost.
#
#   ci/outage.sh [SECONDS]     (default: 30; each outage is that long)
#
# A tree of real files and some large ones are copied to a volume on MinIO, each time ending with an fsync of all, while
# MinIO (1) is killed, and started again, (2) is held still (SIGSTOP), (3) answers every other request 503 over a thin
# line. There is no write-back log (--mode through), with which nobody would notice. Meanwhile names and attributes are asked for. Each time the copy must go on to its end once the store is back;
# then the volume is mounted again and every byte compared. Last, with a short --store-timeout and a store that stays
# away: fsync and umount fail in time and say so, and everything is there once the store is.
#
# Last line: outage: slowest_stat_ms=N differ=N. Fails unless N is under 1000, nothing differs, and the mount logged no
# error. Needs 3 GB in TMPDIR, beside the hundredth of a disk that MinIO keeps free.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) print_usage; exit 0 ;;
esac
outage=${1:-30}
case $outage in *[!0-9]* | 0) usage_error "the length of an outage is a number of seconds, not $outage" ;; esac
# Below the mount's --store-timeout, or copies would fail as they should.
[ "$outage" -le 240 ] || usage_error "an outage of at most 240 s"

build kiseki
build torture
build delay
bash "$root/ci/minio.sh" build
make_work outage
# In KiB.
read -r size free < <(df --output=size,avail "$work" | tail -n 1)
[ "$free" -gt $((size / 100 + (3 << 20))) ] ||
    die "too little room in ${TMPDIR:-/tmp}: $((free >> 10)) MiB are free, $(((size / 100 >> 10) + 3072)) MiB are needed; set TMPDIR"

# What is copied exceeds by far what the mount may hold in memory: so the copy lasts longer than any outage.
buffer_mb=128
big_mb=128
bigs=4
trees=1500
slowest=0
differ=0
# A script that hangs says so.
patience=300

say "collecting the source tree"
(cd "$root" && cargo fetch --quiet --locked)
mkdir -p "$work/source/tree" "$work/source/big"
for crate in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/*/; do
    [ "$(find "$work/source/tree" -type f | wc -l)" -lt $trees ] || break
    cp -a "$crate" "$work/source/tree/"
done
for ((i = 0; i < bigs; i++)); do head -c "${big_mb}M" /dev/urandom >"$work/source/big/large$i"; done

now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo "${t%???}"; }

# Every condition is waited for with an end: `await WHAT SECONDS COMMAND...`.
await() {
    local what=$1 end=$((SECONDS + $2))
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "$what: not in time"
        sleep 0.1
    done
}
fail() { mount_log; die "$@"; }
ended() { ! alive "$1"; }

# Objects that this mount has stored.
puts() { "$kiseki" status "$work/mnt" --json | tr -d ' \n' | sed -n 's/.*"puts":\([0-9]*\).*/\1/p'; }
more_puts_than() { [ "$(puts)" -gt "$1" ]; }

# Replaces the proxy's control file; without text it passes everything on.
control() {
    rm -f "$work/control"
    [ -z "${1:-}" ] || { printf '%b' "$1" >"$work/control.new"; mv "$work/control.new" "$work/control"; }
}

# Copies both halves of the source at once, then syncs every file and folder.
start_copy() {
    # shellcheck disable=SC2016
    setsid bash -c 'set -e
        cp -a "$1/tree/." "$2/" & tree=$!
        cp -a "$1/big/." "$2/"
        wait $tree
        find "$2" -not -type l -print0 | xargs -0 sync' copy "$work/source" "$1" >"$work/copy.log" 2>&1 &
    copy=$!
    helpers+=("$copy")
}

start_probe() {
    rm -f "$work/stop"
    "$target/release/torture" probe --dir "$1" --stop "$work/stop" >"$work/probe.log" 2>&1 &
    probe=$!
    helpers+=("$probe")
}

# Names, modes, times, lengths and links below a folder.
listing() { (cd "$1" && find . -mindepth 1 -printf '%P %m %y %l %T@ %s\n' | sed '/ d /s/ [0-9]*$//' | LC_ALL=C sort); }

# Counts what is not as in the source.
compare() {
    local half
    : >"$work/differ"
    for half in tree big; do
        # What only the copy has is of the other half, or is seen below.
        diff -rq --no-dereference "$work/source/$half" "$1" | grep -v "^Only in $1" >>"$work/differ" || true
        listing "$work/source/$half"
    done | LC_ALL=C sort >"$work/before"
    listing "$1" | LC_ALL=C sort >"$work/after"
    diff "$work/before" "$work/after" | sed -n '/^[<>]/p' >>"$work/differ" || true
    sed -n 1,10p "$work/differ" >&2
    differ=$((differ + $(wc -l <"$work/differ")))
}

# One outage: a name, how it begins, how it ends.
round() {
    local name=$1 to=$work/mnt/$1 stat
    mkdir "$to"
    start_copy "$to"
    await "the first objects" $patience more_puts_than 16
    start_probe "$to"
    say "$name: $(puts) objects are stored; the outage begins"
    $2
    sleep "$outage"
    alive "$copy" || fail "$name: the copy ended within the outage: it says nothing. $(tail -n 5 "$work/copy.log")"
    timeout 5 "$kiseki" status "$work/mnt" >"$work/status.log" || fail "$name: status does not answer"
    say "$name: the store is back"
    $3
    await "$name: the end of the copy" $patience ended "$copy"
    wait "$copy" || fail "$name: the copy failed: $(tail -n 5 "$work/copy.log")"
    touch "$work/stop"
    await "$name: the end of the probe" 60 ended "$probe"
    wait "$probe" || fail "$name: the probe failed: $(cat "$work/probe.log")"
    helpers=("$proxy")
    say "$name: the copy is done; $(cat "$work/probe.log")"
    stat=$(sed -n 's/^slowest_stat_ms=\([0-9]*\) .*/\1/p' "$work/probe.log")
    [ "$stat" -le "$slowest" ] || slowest=$stat
    # A new mount has cached nothing.
    unmount_volume
    mount_volume --mode through --buffer-size ${buffer_mb}M
    compare "$to"
    rm -r "$to"
}

# Without a store that ever comes back, calls end in time, and nothing is dropped.
gone_for_good() {
    local begin took
    mount_volume --mode through --store-timeout 5s
    cp "$work/source/big/large0" "$work/mnt/stored"
    sync "$work/mnt/stored"
    kill_minio
    say "gone: the store is away; writing and syncing"
    begin=$(now_ms)
    if dd if="$work/source/big/large1" of="$work/mnt/waiting" bs=1M count=8 conv=fsync 2>"$work/dd.log"; then
        fail "gone: fsync says that the bytes are stored"
    fi
    took=$(($(now_ms) - begin))
    grep -q 'Input/output error' "$work/dd.log" || fail "gone: fsync did not fail with EIO: $(cat "$work/dd.log")"
    { [ $took -ge 5000 ] && [ $took -le 15000 ]; } || fail "gone: fsync failed after $took ms, not 5 to 15 s"
    cmp -n $((8 << 20)) "$work/source/big/large1" "$work/mnt/waiting" || fail "gone: what was written cannot be read"
    timeout 5 "$kiseki" status "$work/mnt" >"$work/status.log" || fail "gone: status does not answer"
    say "gone: fsync failed after $took ms; unmounting"
    if timeout 60 "$kiseki" umount "$work/mnt" 2>"$work/umount.log"; then fail "gone: umount says that all is stored"; fi
    # It says what is not stored, and how to go on.
    { grep -Eq '[0-9] MiB in 1 files? cannot be stored' "$work/umount.log" && grep -q 'Make the object store reachable' "$work/umount.log"; } ||
        fail "gone: umount does not say what to do: $(cat "$work/umount.log")"
    "$kiseki" status "$work/mnt" >"$work/status.log" || fail "gone: not mounted any more after an umount that failed"
    say "gone: umount failed as it should; the store is back"
    start_minio
    # The deadline of an fsync is as long as the longest pause between two attempts here: one may still come too early.
    await "gone: an fsync that succeeds now that the store is back" 60 sync "$work/mnt/waiting"
    unmount_volume
    mount_volume
    cmp "$work/source/big/large0" "$work/mnt/stored" || differ=$((differ + 1))
    cmp "$work/mnt/waiting" <(head -c $((8 << 20)) "$work/source/big/large1") || differ=$((differ + 1))
    unmount_volume
    check_volume
}

# Twice as long as the outage, however long the copy would take without it.
line=$(((bigs * big_mb - buffer_mb) * 8 / (2 * outage)))
fail_every_other() { control "bandwidth ${line}M\nfail every:2:503\n"; }

start_minio
"$target/release/delay" --listen 127.0.0.1:0 --to "$minio_url" --control "$work/control" >"$work/proxy.url" 2>"$work/proxy.log" &
proxy=$!
# Its end is no news.
disown "$proxy"
helpers=("$proxy")
await "the proxy's address" 10 test -s "$work/proxy.url"
format_volume minio "$(head -n 1 "$work/proxy.url")"
mount_volume --mode through --buffer-size ${buffer_mb}M
round stop kill_minio start_minio
round freeze freeze_minio resume_minio
round refuse fail_every_other control
unmount_volume
gone_for_good

if grep ERROR "$work/mount.log" >&2; then die "the mount logged an error: a promise was broken"; fi
echo "outage: slowest_stat_ms=$slowest differ=$differ"
[ "$slowest" -lt 1000 ] && [ "$differ" = 0 ]
