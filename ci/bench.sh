#!/usr/bin/env bash
# Measures the local disk, a null file system and Kiseki (on a local folder) in one run, interleaved, with 1 and with
# 4 threads, and compares. Needs root: the kernel's caches are dropped between phases.
#
#   ci/bench.sh [--rounds N] [--short] [--more] [--report]
#
#   --rounds N   rounds per thread count (5; 3 with --short)
#   --short      smaller files
#   --more       also the rows of small operations (not checked)
#   --report     only the table: succeeds whatever it says
#
# The null file system (ci/bench/nullfs) stores nothing: it is what FUSE itself costs on this machine. A ratio is the
# median of the rounds' ratios. Fails, naming the rows, where Kiseki is under 0.4 of null in write_big, read_big,
# write_small, read_small or stat. Last line: bench: rows=N below=N

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

least=0.4
rounds=
short=
more=
report=
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) print_usage; exit 0 ;;
    --rounds) rounds=${2:-}; shift ;;
    --short) short=1 ;;
    --more) more="more" ;;
    --report) report=1 ;;
    *) usage_error "unknown argument $1" ;;
    esac
    shift
done
rounds=${rounds:-$([ -n "$short" ] && echo 3 || echo 5)}
case $rounds in *[!0-9]* | 0) usage_error "--rounds needs a number above 0" ;; esac

build kiseki
build_apart bench/jbench
build_apart bench/nullfs
need_root "${arguments[@]}"
make_work bench

# Sizes per thread: `juicefs bench` has 1024 MiB and 100 files of 128 KiB; more files steady the short rows.
sizes() {
    local big=1024 count=400
    [ -z "$short" ] || big=256 count=200
    echo "p=$1 big=$((big / $1)) count=$count small=128"
}

format_volume
mount_volume
mkdir "$work/local" "$work/null"
"$target/release/ceil" "$work/null" n=4 clone >"$work/null.log" 2>&1 &
for _ in $(seq 100); do
    [ -z "$(mounts_under "$work/null")" ] || break
    sleep 0.1
done
[ -n "$(mounts_under "$work/null")" ] || { cat "$work/null.log" >&2; die "the null file system does not mount"; }

for threads in 1 4; do
    for round in $(seq "$rounds"); do
        say "round $round of $rounds, $threads threads"
        order="local null mnt"
        [ $((round % 2)) = 1 ] || order="mnt null local"
        for name in $order; do
            # shellcheck disable=SC2046
            "$target/release/jbench" "$work/$name" $(sizes "$threads") $more >"$work/out" || { mount_log; die "jbench failed on $name"; }
            awk -v t="$threads" -v r="$round" -v n="$name" '{ print t, r, n, $1, $2, $3 }' "$work/out" >>"$work/results"
        done
    done
done
unmount_volume
check_volume

awk -v least="$least" '
function median(list, count,    i, j, x) {
    for (i = 2; i <= count; i++) for (j = i; j > 1 && list[j - 1] > list[j]; j--) { x = list[j]; list[j] = list[j - 1]; list[j - 1] = x }
    return count % 2 ? list[(count + 1) / 2] : (list[count / 2] + list[count / 2 + 1]) / 2
}
# Medians over the rounds of the value of `a`, divided by that of `b` in the same round if given.
function middle(t, row, a, b,    list, count, r) {
    count = 0
    for (r = 1; r <= rounds; r++) if ((t, r, a, row) in value) list[++count] = value[t, r, a, row] / (b ? value[t, r, b, row] : 1)
    return median(list, count)
}
{ value[$1, $2, $3, $4] = $5; unit[$4] = $6; if ($2 > rounds) rounds = $2; if (!($4 in known)) { known[$4] = 1; order[++names] = $4 } }
END {
    split("write_big read_big write_small read_small stat", list, " ")
    for (i in list) checked[list[i]] = 1
    printf "%-15s %7s %-8s %10s %10s %10s %9s %9s\n", "row", "threads", "unit", "local", "null", "kiseki", "to null", "to local"
    for (i = 1; i <= names; i++) for (t = 1; t <= 4; t += 3) {
        row = order[i]
        ratio = middle(t, row, "mnt", "null")
        printf "%-15s %7d %-8s %10.1f %10.1f %10.1f %9.2f %9.2f\n", row, t, unit[row], middle(t, row, "local", ""), middle(t, row, "null", ""), middle(t, row, "mnt", ""), ratio, middle(t, row, "mnt", "local")
        if (row in checked) {
            rows++
            if (ratio < least) { below++; missed = missed sprintf("below %s of null: %s with %d threads (%.2f)\n", least, row, t, ratio) }
        }
    }
    printf "%sbench: rows=%d below=%d\n", missed, rows, below
    exit below > 0
}' "$work/results" || [ -n "$report" ]
