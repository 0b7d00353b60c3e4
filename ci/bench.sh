#!/usr/bin/env bash
# Measures in one run, interleaved, with 1 and with 4 threads:
#
#   local    the disk
#   null     a file system that stores nothing (ci/bench/nullfs): what FUSE itself costs on this machine
#   kiseki   Kiseki on a local folder
#   minio    Kiseki on MinIO on this machine
#   delayed  the same with 50 ms more for each request, and 1 Gbit/s in each direction (ci/delay)
#
#   ci/bench.sh [--check] [--rounds N] [--short] [--rows] [--without-minio] [--json FILE]
#   ci/bench.sh --table FILE
#
#   --check           fails, naming the rows, where Kiseki misses what it aims at (`targets` below)
#   --rounds N        rounds per thread count (5; 1 with --short)
#   --short           less of everything, and a single round of `kiseki bench` and of programs
#   --rows            only the rows of jbench: no `kiseki bench`, no programs, no write_long
#   --without-minio   only local, null and kiseki; needs no Go
#   --json FILE       writes all figures to FILE
#   --table FILE      measures nothing: prints such a FILE as tables in Markdown
#
# Three drivers: ci/bench/jbench measures the rows that are compared with null; `kiseki bench` says when what was written
# is visible, durable and drained, and what requests that took; ci/bench/programs.sh times real programs. write_long is
# jbench's write_big of four times the mount's buffer. A ratio is the median of the rounds' ratios.
#
# A round of jbench has four parts, each on all systems in turn: a big file and random reads in it, small files, stat,
# small operations and random reads of what the kernel has. All but stat are repeated (not with --short, but for small
# operations), so that a row lasts a second where that can be had; a figure is all operations over all their time. Short
# all the same, on two cores of an Intel Xeon: rand4k_cold, twice 40 ms; ls_l, ten times 6 ms; rand4k_warm, ten times 3 ms.
#
# plain_upload is what curl reaches with objects of 4 MiB, 16 at once, where the mounts put theirs: as many bytes as `kiseki
# bench` writes into big files. What is drained is to reach 0.8 of it, the time of writing included.
#
# Needs root: the kernel's caches are dropped between phases. MinIO syncs the whole machine at every put, as it must to
# survive a power cut (MINIO_FS_OSYNC).
#
# Last line: bench: rows=N below=N, of the rows that have a target.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

latency=50ms
bandwidth=1G
rounds=
short=
only_rows=
check=
minio=1
json=
table=
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) print_usage; exit 0 ;;
    --rounds) rounds=${2:-}; shift ;;
    --short) short=1 ;;
    --rows) only_rows=1 ;;
    --check) check=1 ;;
    --without-minio) minio= ;;
    --json) json=${2:-}; shift ;;
    --table) table=${2:-}; shift ;;
    *) usage_error "unknown argument $1" ;;
    esac
    [ $# -gt 0 ] || usage_error "the last argument needs a value"
    shift
done
rounds=${rounds:-$([ -n "$short" ] && echo 1 || echo 5)}
case $rounds in *[!0-9]* | 0) usage_error "--rounds needs a number above 0" ;; esac
command -v jq >/dev/null || die "this needs jq: run ci/dep.sh test"

# What the jq programs share. Figures have one digit below 10, and none from 100 on.
read -r -d '' library <<'JQ' || true
def median: sort | length as $n | if $n == 0 then null elif $n % 2 == 1 then .[($n - 1) / 2] else (.[$n / 2 - 1] + .[$n / 2]) / 2 end;
def digits($n): pow(10; $n) as $p | (. * $p | round) as $i
    | if $n == 0 then "\($i)" else "\($i / $p | floor).\("\($i % $p + $p)"[1:])" end;
def figure: if . == null then "" elif . >= 100 then digits(0) elif . >= 10 then digits(1) else digits(2) end;
def words: {write_big: "Write big file", read_big: "Read big file", write_small: "Write small file",
    read_small: "Read small file", stat: "Stat file", rand4k_cold: "Read 4 KiB at random, cold",
    rand4k_warm: "Read 4 KiB at random, warm", create_empty: "Create empty file", rename: "Rename", ls_l: "List with attributes",
    unlink: "Unlink", small4k_fsync: "Write 4 KiB file, fsync", append4k: "Append 4 KiB",
    append4k_fsync: "Append 4 KiB, fdatasync", mix_rw4k: "Write and read 4 KiB at random", write_long: "Write four times the buffer", plain_upload: "Upload 4 MiB objects with curl", untar: "Untar", git_clone: "git clone",
    cargo_build: "cargo build", sqlite_commits: "SQLite commits"}[.] // .;
# The rows of one driver, one object for all systems: key, threads, unit, and the row of each system.
def across($driver): [.rows[] | select(.driver == $driver)] | (map("\(.row) \(.account)") | to_entries
    | map({key: .value, value: .key}) | reverse | from_entries) as $place
    | group_by([$place["\(.row) \(.account)"], .threads])
    | map({row: .[0].row, account: .[0].account, threads: .[0].threads, unit: .[0].unit, of: (map({key: .system, value: .}) | from_entries)});
# What a row must reach, as a part of what: null, local, the lower of both; with one thread. With four: 0.6 of null.
def targets: [["write_big", 0.75, "null"], ["read_big", 0.85, "lower"], ["write_small", 0.7, "null"], ["read_small", 0.8, "null"],
    ["stat", 0.9, "null"], ["create_empty", 0.7, "null"], ["rename", 0.65, "null"], ["ls_l", 0.8, "null"], ["unlink", 0.65, "null"],
    ["append4k", 0.95, "null"], ["small4k_fsync", 0.5, "local"], ["append4k_fsync", 0.5, "local"], ["mix_rw4k", 0.7, "null"],
    ["rand4k_cold", 0.6, "local"], ["rand4k_warm", 0.9, "local"]];
# Rows that a store far away must not slow down to less than this part of the same store nearby.
def unslowed: [["write_big", "write_small", "create_empty", "rename", "unlink", "append4k", "small4k_fsync", "append4k_fsync"], 0.8];
def part($rounds; $base): [$rounds, $base] | transpose | map(.[0] / .[1]) | median;
# Of each row that has a target: what of what, how much it is, how much it must be.
def judged: [
    (across("kiseki bench") as $rows | $rows[] | select(.row == "plain_upload") | . as $plain
      | $rows[] | select(.row == "write_big" and .account == "drained" and .threads == $plain.threads)
      | {row: "write_big drained", threads, system: "minio", what: "plain upload", least: 0.8,
          is: part(.of.minio.rounds; $plain.of.minio.rounds)}),
    (across("jbench")[] | . as $row | .of as $of
      | def base($what): if $what == "lower" then [$of.local.rounds, $of.null.rounds] | transpose | map(min) else $of[$what].rounds end;
        (["kiseki", "minio"][] | select($of[.]) | . as $system
          | if $row.threads == 1 then targets[] | select(.[0] == $row.row)
            else targets[:9][] | select(.[0] == $row.row) | [.[0], 0.6, "null"] end
          | {row: $row.row, threads: $row.threads, system: $system, what: .[2], least: .[1], is: part($of[$system].rounds; base(.[2]))}),
        (select($of.delayed and (unslowed[0] | index($row.row)))
          | {row: $row.row, threads: $row.threads, system: "delayed", what: "minio", least: unslowed[1],
              is: part($of.delayed.rounds; $of.minio.rounds)}))];
JQ

if [ -n "$table" ]; then
    [ -r "$table" ] || die "cannot read $table"
    jq -r "$library"'
        def people: {local: "local disk", null: "null FUSE", kiseki: "Kiseki, local folder", minio: "Kiseki, MinIO",
            delayed: "Kiseki, MinIO, \(.settings.latency | sub("ms"; " ms")) away"}[.system];
        def line: "| " + join(" | ") + " |";
        def rule($text): [range($text)] | map("---:") | . as $right | "|---|---:|" + ($right | join("|")) + "|";
        . as $all
        | def heads($systems): $systems | map({system: ., settings: $all.settings} | people);
        (.settings.systems) as $systems
        | ($systems | map(select(. != "null"))) as $stores
        | (across("jbench") | select(length > 0)
            | ([""] + ["threads"] + heads($systems) + ["Kiseki to null"] | line), rule(($systems | length) + 1),
              (.[] | . as $row
                | ["\(.row | words), \(.unit)", "\(.threads)"] + ($systems | map($row.of[.].median | figure)) + [.of.kiseki.ratio_to_null | digits(2)] | line),
              ""),
          ([across("programs"), across("kiseki bench")] | select(add | length > 0)
            | ([""] + ["threads"] + heads($stores) + ["puts, gets (\(if $systems | index("minio") then "MinIO" else "folder" end))"] | line), rule(($stores | length) + 1),
              (.[0][] | . as $row | ["\(.row | words), \(.unit)", "\(.threads)"] + ($stores | map($row.of[.].median | figure)) + [""] | line),
              (.[1][] | . as $row | (.of.minio // .of.kiseki).requests as $requests
                | ["\(.row | words)\(if .account then ": \(.account)" else "" end), \(.unit)", "\(.threads)"]
                  + ($stores | map($row.of[.].median | figure)) + [$requests | if . then "\(.puts), \(.gets)" else "" end] | line),
              ""),
          "\(.date[:10]), \(.machine.cpu), \(.machine.cores) cores, \(.machine.memory_bytes / 1073741824 | round) GiB, Linux \(.machine.kernel). "
            + "Medians of \(.settings.rounds) round\(if .settings.rounds == 1 then "" else "s" end)\(if .settings.bench_rounds > 0 then " (`kiseki bench`: \(.settings.bench_rounds))" else "" end). "
            + "Peak memory of the mounts: " + (.peak_memory_bytes | to_entries | map("\(.key) \(.value / 1048576 | round) MiB") | join(", ")) + ". "
            + "What was written a moment ago is read from the mount\u0027s own cache as far as that holds it."
            + if .versions.minio then " MinIO syncs the whole machine at each put (`MINIO_FS_OSYNC=on`)." else "" end
    ' "$table" || die "$table is not a file of --json"
    exit 0
fi

build kiseki
build_apart bench/jbench
build_apart bench/nullfs
if [ -n "$minio" ]; then
    build delay
    bash "$root/ci/minio.sh" build
fi
need_root "${arguments[@]}"
[ -z "$json" ] || : >>"$json" || die "cannot write $json"
make_work bench
mkdir "$work/on"

systems=(local null kiseki)
mounted=(kiseki)
[ -z "$minio" ] || systems+=(minio delayed) mounted+=(minio delayed)

start_null() {
    mkdir "$work/on/null"
    "$target/release/ceil" "$work/on/null" n=4 clone >"$work/null.log" 2>&1 &
    for _ in $(seq 100); do
        [ -z "$(mounts_under "$work/on/null")" ] || return 0
        sleep 0.1
    done
    cat "$work/null.log" >&2
    die "the null file system does not mount"
}

# The proxy in front of MinIO: sets `far`.
start_delay() {
    # The control file is never there; its path tells whose process this is.
    "$target/release/delay" --listen 127.0.0.1:0 --to "$minio_url" --latency "$latency" --bandwidth "$bandwidth" \
        --control "$work/delay.control" >"$work/delay.out" 2>"$work/delay.log" &
    helpers+=("$!")
    # Its end is no news.
    disown
    for _ in $(seq 100); do
        far=$(head -n 1 "$work/delay.out")
        [ -z "$far" ] || return 0
        alive "${helpers[-1]}" || break
        sleep 0.1
    done
    cat "$work/delay.log" >&2
    die "the proxy does not start"
}

# Makes the volume $1 on storage $2 in bucket $3, and mounts it on `$work/on/$1`.
mount_one() {
    mkdir "$work/on/$1"
    "$kiseki" format "$work/$1.meta" "$1-volume" --storage "$2" --bucket "$3" >/dev/null || die "cannot format $1"
    "$kiseki" mount "$work/$1.meta" "$work/on/$1" -d --log "$work/$1.log" >/dev/null || die "cannot mount $1"
}

log_of() { [ ! -s "$work/$1.log" ] || { say "end of the log of $1:"; tail -n 40 "$work/$1.log" >&2; }; }

# Waits until a mount has nothing left to store or to delete, so that it does not disturb the next measurement.
settle() {
    local end=$((SECONDS + 120))
    [ -e "$work/$1.meta" ] || return 0
    until "$kiseki" status "$work/on/$1" --json | jq -e '.mount | .dirty_bytes == 0 and .uploads == 0 and (.log.objects // 0) == 0 and (.deleting | not)' \
        >/dev/null; do
        [ $SECONDS -lt $end ] || { log_of "$1"; die "$1 still has something to store or to delete after two minutes"; }
        sleep 0.1
    done
}

# jbench on the system $1, with more arguments.
jbench() { "$target/release/jbench" "$work/on/$1" "${@:2}" || { log_of "$1"; die "jbench failed on $1"; }; }

# Who writes first finds caches empty and memory not yet there: not counted.
warm_up() {
    jbench "$1" p=1 big=256 count=200 small=128 >/dev/null
    settle "$1"
}

# jbench on the system $1 with $2 threads, $3 times, with $4 after each, and with the arguments from $6 on. Adds its rows $5
# to the results: driver, system, row, account, threads, value, unit, requests. The value is all operations over all their
# time.
run_jbench() {
    local name=$1 threads=$2 times=$3 after=$4 rows=$5
    for _ in $(seq "$times"); do
        jbench "$name" p="$threads" "${@:6}"
        "$after" "$name"
    done >"$work/out"
    settle "$name"
    awk -v name="$name" -v threads="$threads" -v times="$times" -v rows="$rows" '
        { seconds[$1] += 1 / $2; unit[$1] = $3 }
        END {
            count = split(rows, row, " ")
            for (i = 1; i <= count; i++)
                printf "jbench\t%s\t%s\tnull\t%s\t%.6g\t%s\tnull\n", name, row[i], threads, times / seconds[row[i]], unit[row[i]]
        }' "$work/out" >>"$work/results"
}

# MiB of big files, of all threads together.
big=$([ -n "$short" ] && echo 256 || echo 1024)

# The parts of a round. How many small operations there are is jbench's own choice.
run_big() {
    local times=2
    [ -z "$short" ] || times=1
    run_jbench "$1" "$2" "$times" settle "write_big read_big rand4k_cold" big="$((big / $2))" count=0 more
}
run_small_files() {
    local times=3 count=$((1600 / $2))
    [ -z "$short" ] || times=1 count=200
    run_jbench "$1" "$2" "$times" settle "write_small read_small" big=0 count="$count" small=128
}
run_stat() {
    local count=40000
    [ -z "$short" ] || count=10000
    run_jbench "$1" "$2" 1 : stat big=0 count="$((count / $2))" small=1
}
run_small_operations() {
    local times=10
    [ -z "$short" ] || times=3
    run_jbench "$1" "$2" "$times" : \
        "create_empty rename ls_l unlink small4k_fsync append4k append4k_fsync mix_rw4k rand4k_warm" big=16 count=0 more
}

# The same of `kiseki bench`, with as many files as `juicefs bench` has.
run_bench() {
    local count=100
    [ -z "$short" ] || count=50
    "$kiseki" bench "$work/on/$1" --threads "$2" --big-file-size "$((big / $2))M" --small-file-count "$count" --json >"$work/out" ||
        { log_of "$1"; die "kiseki bench failed on $1"; }
    settle "$1"
    jq -r --arg system "$1" '
        .plan.threads as $threads | .rows[]
        | ["kiseki bench", $system, .item, .account // "null", $threads, .value, .unit, (.requests | tojson)]
        | map(tostring) | join("\t")' "$work/out" >>"$work/results"
}

# Requests of method $1 for the objects of a plain upload, 16 at once.
plain_requests() {
    {
        printf 'aws-sigv4 = "aws:amz:us-east-1:s3"\nuser = "%s:%s"\n' "$KISEKI_ACCESS_KEY" "$KISEKI_SECRET_KEY"
        printf 'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\nrequest = "%s"\nno-progress-meter\nfail\nparallel\nparallel-max = 16\n' "$1"
        for at in $(seq $((big / 4))); do
            printf 'url = "%s/kiseki/plain/%s"\noutput = "/dev/null"\n' "$minio_url" "$at"
            [ "$1" != PUT ] || printf 'upload-file = "%s"\n' "$work/4MiB"
        done
    } | curl --config - || die "curl cannot $1 objects"
}

# What a plain uploader reaches on MinIO: a row of `kiseki bench`, for $1 threads.
run_plain_upload() {
    local start
    [ -s "$work/4MiB" ] || head -c 4M /dev/urandom >"$work/4MiB"
    start=$EPOCHREALTIME
    plain_requests PUT
    awk -v threads="$1" -v big="$big" -v from="$start" -v to="$EPOCHREALTIME" \
        'BEGIN { printf "kiseki bench\tminio\tplain_upload\tnull\t%s\t%.6g\tMiB/s\tnull\n", threads, big / (to - from) }' >>"$work/results"
    plain_requests DELETE
}

# The rows of real programs, and of a file that the buffer does not hold.
run_programs() {
    bash "$root/ci/bench/programs.sh" run "$work/material" "$work/on/$1" >"$work/out" || { log_of "$1"; die "a program failed on $1"; }
    settle "$1"
    if [ -z "$short" ]; then
        "$target/release/jbench" "$work/on/$1" p=1 big="$long" count=0 >"$work/long" || { log_of "$1"; die "jbench failed on $1"; }
        settle "$1"
        sed -n 's/^write_big /write_long /p' "$work/long" >>"$work/out"
    fi
    awk -v name="$1" -v threads="$2" '{ printf "programs\t%s\t%s\tnull\t%s\t%s\t%s\tnull\n", name, $1, threads, $2, $3 }' "$work/out" >>"$work/results"
}

# Each system in turn, the other way round in every second round.
interleave() {
    local round=$1 run=$2 threads=$3 name order=("${@:4}") at
    for ((at = 0; at < ${#order[@]}; at++)); do
        name=${order[at]}
        [ $((round % 2)) = 1 ] || name=${order[${#order[@]} - 1 - at]}
        "$run" "$name" "$threads"
    done
}

mkdir "$work/on/local" "$work/bucket"
start_null
mount_one kiseki file "$work/bucket"
if [ -n "$minio" ]; then
    # shellcheck disable=SC2119
    start_minio
    start_delay
    mount_one minio minio "$minio_url/kiseki"
    mount_one delayed minio "$far/kiseki"
fi

bench_rounds=$rounds
[ -z "$short" ] || bench_rounds=1
[ -z "$only_rows" ] || bench_rounds=0
if [ "$bench_rounds" -gt 0 ]; then
    mkdir "$work/material"
    bash "$root/ci/bench/programs.sh" prepare "$work/material" "$([ -n "$short" ] && echo 500 || echo 2000)"
    # MiB
    long=$("$kiseki" status "$work/on/kiseki" --json | jq '.mount.buffer_size * 4 / 1048576')
fi
say "warm-up"
for name in "${systems[@]}"; do warm_up "$name"; done
for round in $(seq "$bench_rounds"); do
    say "programs, round $round of $bench_rounds"
    interleave "$round" run_programs 1 local "${mounted[@]}"
done
for threads in 1 4; do
    for round in $(seq "$rounds"); do
        # Part by part: what is compared is measured within a short time.
        for part in big small_files stat small_operations; do
            say "round $round of $rounds, $threads threads: ${part/_/ }"
            interleave "$round" "run_$part" "$threads" "${systems[@]}"
        done
        [ "$round" -le "$bench_rounds" ] || continue
        say "round $round of $bench_rounds, $threads threads: kiseki bench"
        interleave "$round" run_bench "$threads" local "${mounted[@]}"
        [ -z "$minio" ] || run_plain_upload "$threads"
    done
done

# Peak memory, then the end of each mount, and what it left.
peaks={}
for name in "${mounted[@]}"; do
    pid=$("$kiseki" status "$work/on/$name" --json | jq .mount.pid)
    peaks=$(jq --arg name "$name" --argjson kib "$(awk '/^VmHWM:/ { print $2 }' "/proc/$pid/status")" '. + {($name): ($kib * 1024)}' <<<"$peaks")
    "$kiseki" umount "$work/on/$name" >/dev/null || { log_of "$name"; die "cannot unmount $name"; }
    "$kiseki" fsck "$work/$name.meta" --data >"$work/fsck.out" 2>&1 || { cat "$work/fsck.out" >&2; die "fsck found damage in $name"; }
done

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
memory_kib=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
# Raw input: the tab-separated lines. Of the requests of all rounds, those of the last.
jq -Rn --argjson peaks "$peaks" --argjson rounds "$rounds" --argjson bench_rounds "$bench_rounds" \
    --arg short "$short" --arg latency "$latency" --arg bandwidth "$bandwidth" --arg minio "$([ -z "$minio" ] || cat "$tools/bin/minio.version")" \
    --arg date "$(date -u +%Y-%m-%dT%H:%M:%SZ)" --arg cpu "${cpu:-$(uname -m)}" --argjson cores "$(nproc)" \
    --argjson memory "$((memory_kib * 1024))" --arg kernel "$(uname -r)" \
    --arg version "$("$kiseki" --version)" --arg revision "$(git -C "$root" rev-parse --short HEAD 2>/dev/null || true)" \
    --arg systems "${systems[*]}" "$library"'
    [inputs | split("\t") | {driver: .[0], system: .[1], row: .[2], account: (.[3] | if . == "null" then null else . end),
        threads: (.[4] | tonumber), value: (.[5] | tonumber), unit: .[6], requests: (.[7] | fromjson)}] as $lines
    | ($lines | map(select(.system == "null") | {key: "\(.driver) \(.row) \(.threads)", value}) | group_by(.key)
        | map({key: .[0].key, value: map(.value)}) | from_entries) as $null
    | (reduce $lines[] as $line ([]; if any(.[]; . == ($line | {driver, row, account})) then . else . + [$line | {driver, row, account}] end)) as $order
    | {
        date: $date,
        machine: {cpu: $cpu, cores: $cores, memory_bytes: $memory, kernel: $kernel},
        versions: {kiseki: $version, revision: (if $revision == "" then null else $revision end), minio: (if $minio == "" then null else $minio end)},
        settings: {systems: ($systems | split(" ")), short: ($short != ""), rounds: $rounds, bench_rounds: $bench_rounds, latency: $latency, bandwidth: $bandwidth},
        rows: ($lines | group_by([(. as $line | $order | index($line | {driver, row, account})), .threads, .system]) | map(
            .[0] as $first | map(.value) as $values | $null["\($first.driver) \($first.row) \($first.threads)"] as $base
            | $first | {driver, system, row, account, threads, unit, median: ($values | median), rounds: $values,
                ratio_to_null: (if $base then [$values, $base] | transpose | map(.[0] / .[1]) | median else null end)}
              + {requests: $lines | map(select(.driver == $first.driver and .system == $first.system and .row == $first.row
                    and .account == $first.account and .threads == $first.threads)) | last.requests})),
        peak_memory_bytes: $peaks
    }' "$work/results" >"$work/bench.json"
[ -z "$json" ] || cat "$work/bench.json" >"$json"

# Tables for the terminal, of the drivers that have rows: a line of headings, then tab-separated cells.
show() { awk -F '\t' '{ for (i = 1; i <= NF; i++) printf i == 1 ? "%-24s" : "%12s", $i; printf "\n" }'; }
jq -r "$library"'
    .settings.systems as $systems | ($systems | map(select(. != "null"))) as $stores
    | def section($driver; $heading; cells): across($driver) | select(length > 0) | ($heading | join("\t")), (.[] | cells | join("\t")), "";
      def to_local: [.of.kiseki.rounds, .of.local.rounds] | transpose | map(.[0] / .[1]) | median | digits(2);
      section("jbench"; ["jbench", "threads", "unit"] + $systems + ["to null", "to local"];
        . as $row | [.row, "\(.threads)", .unit] + ($systems | map($row.of[.].median | figure)) + [(.of.kiseki.ratio_to_null | digits(2)), to_local]),
      section("kiseki bench"; ["kiseki bench", "threads", "unit"] + $stores + ($stores | map(select(. != "local") | . + " p/g"));
        . as $row | ["\(.row) \(.account // "")", "\(.threads)", .unit] + ($stores | map($row.of[.].median | figure))
          + ($stores | map(select(. != "local") | $row.of[.].requests | if . then "\(.puts)/\(.gets)" else "" end))),
      section("programs"; ["programs", "threads", "unit"] + $stores + ["to local"];
        . as $row | [.row, "\(.threads)", .unit] + ($stores | map($row.of[.].median | figure)) + [to_local]),
      (.peak_memory_bytes | to_entries[] | "peak memory, \(.key)\t\(.value / 1048576 | round) MiB")
' "$work/bench.json" | show

jq -r "$library"'
    judged | map(select(.is < .least)) as $below
    | ($below[] | "below: \(.system) \(.row) with \(.threads) threads: \(.is | digits(2)) of \(.what), should be \(.least)"),
      "bench: rows=\(length) below=\($below | length)"
' "$work/bench.json" >"$work/verdict"
cat "$work/verdict"
case $(tail -n 1 "$work/verdict") in *' below=0') ;; *) [ -z "$check" ] ;; esac
