#!/usr/bin/env bash
# Runs every test: the quick start, style, purity of the core, unit tests, simulator, fuzz targets, mounted tests, and
# the scripts that compare with real programs, crashes, power cuts, outages and POSIX suites, these in a short form, on a
# local folder and on MinIO.
#
#   ci/test.sh                   everything
#   ci/test.sh --full            the scripts in their long form (hours)
#   ci/test.sh --without-minio   without what needs Go: MinIO, which is built from source, and the check of ci/lima.yaml
#
# Needs root (or sudo) for loop devices, other users and dropping caches. Installs what is missing. Last line of each
# script: its figures; of the whole: `test: N passed, 0 failed` with N steps. Stops at the first failure.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

full=
minio=1
for word in "$@"; do
    case $word in
    -h | --help) print_usage; exit 0 ;;
    --full) full=1 ;;
    --without-minio) minio= ;;
    *) usage_error "unknown argument $word" ;;
    esac
done
cd "$root"

passed=0
current=
step() {
    current=$1
    shift
    say "=== $current"
    "$@"
    passed=$((passed + 1))
}
trap '[ $? = 0 ] || { echo "FAILED: $current" >&2; echo "test: $passed passed, 1 failed"; }' EXIT

# As a newcomer starts, twice: the second run finds everything there.
quickstart() (
    make_work quickstart
    export KISEKI_HOME=$work/home
    bash ci/quickstart.sh
    bash ci/quickstart.sh
    "$kiseki" umount "$KISEKI_HOME/mnt"
)

# The S3 tests ran against a server of their own in "mounted tests"; here against MinIO, thrown away afterwards.
s3_on_minio() (
    make_work s3
    # shellcheck disable=SC2119
    start_minio
    KISEKI_TEST_S3=$minio_url/kiseki cargo test --release --locked -p kiseki --test s3 --test cli_s3
    say "a clock that is an hour ahead"
    if faketime -f +1h "$kiseki" format "$work/meta" skewed --storage minio --bucket "$minio_url/kiseki" 2>"$work/skewed.log"; then
        die "MinIO takes requests of another time"
    fi
    grep -q 'differ too much' "$work/skewed.log" || die "the clocks are not named: $(cat "$work/skewed.log")"
)

# One profile for what contains RocksDB and what works with it, another for the rest: neither is built twice.
plain=(-p kiseki-core -p sim -p fuzz -p diff)
mounted=(-p kiseki -p torture -p delay)
without=()
[ -n "$minio" ] || without=(--without-minio)
# Go is asked for here, before the long build.
step "dependencies" bash ci/dep.sh test "${without[@]}"
step "release build" cargo build --release --locked "${mounted[@]}"
# By itself: it asks for the core's testkit, which the mounted binary is built without.
step "release build of diff" cargo build --release --locked -p diff
step "quick start" quickstart
[ -z "$minio" ] || step "MinIO" ci/minio.sh build
step "format" cargo fmt --all --check
step "core does no I/O" ci/pure.sh
step "every sentence of the semantics has its test" ci/semantics.sh
[ -z "$minio" ] || step "Lima" ci/lima.sh
step "lints" cargo clippy --locked "${plain[@]}" --all-targets -- -D warnings
step "lints of the runtime" cargo clippy --release --locked "${mounted[@]}" --all-targets -- -D warnings
step "unit tests, simulator, fuzz targets" cargo test --locked "${plain[@]}"
step "mounted tests" cargo test --release --locked "${mounted[@]}"
[ -z "$minio" ] || step "S3 tests on MinIO" s3_on_minio
if [ -n "$full" ]; then
    step "real programs" ci/programs.sh file
    step "POSIX suites" ci/posix.sh file
    step "side by side with ext4" ci/diff.sh --seed 1 --ops 100000
    step "very many entries" ci/entries.sh file
    step "kills" ci/crash.sh --kills 100 --seed 1
    step "kills without a log" ci/crash.sh --mode through --kills 100 --seed 1
    step "power cuts" ci/powercut.sh --cuts 20 --seed 1
    step "power cuts without a log" ci/powercut.sh --mode through --cuts 20 --seed 1
    step "power cuts, fsync doing nothing" ci/powercut.sh --no-fsync
    if [ -n "$minio" ]; then
        step "real programs on MinIO" ci/programs.sh minio
        step "POSIX suites on MinIO" ci/posix.sh minio
        step "side by side with ext4, on MinIO" ci/diff.sh --store minio --seed 2 --ops 20000
        step "kills on MinIO" ci/crash.sh --store minio --kills 30 --seed 1
        step "kills on MinIO without a log" ci/crash.sh --store minio --mode through --kills 30 --seed 1
        step "power cuts on MinIO" ci/powercut.sh --store minio --cuts 10 --seed 1
        step "power cuts on MinIO without a log" ci/powercut.sh --store minio --mode through --cuts 10 --seed 1
        step "power cuts, MinIO not syncing" ci/powercut.sh --store minio --mode through --no-fsync
        step "outages" ci/outage.sh 30
    fi
    step "guided fuzzing" ci/fuzz.sh 600
    step "benchmark" ci/bench.sh "${without[@]}"
else
    step "real programs" ci/programs.sh file --short
    step "POSIX suites" ci/posix.sh file --short
    step "side by side with ext4" ci/diff.sh --seed 1 --ops 10000
    step "very many entries" ci/entries.sh file --count 100000
    step "kills" ci/crash.sh --kills 24 --seed 1
    step "kills without a log" ci/crash.sh --mode through --kills 16 --seed 1
    step "power cuts" ci/powercut.sh --cuts 5 --seed 1
    step "power cuts without a log" ci/powercut.sh --mode through --cuts 4 --seed 1
    step "power cuts, fsync doing nothing" ci/powercut.sh --no-fsync
    if [ -n "$minio" ]; then
        step "real programs on MinIO" ci/programs.sh minio --short
        step "kills on MinIO" ci/crash.sh --store minio --kills 8 --seed 1
        step "kills on MinIO without a log" ci/crash.sh --store minio --mode through --kills 8 --seed 1
        step "power cuts on MinIO" ci/powercut.sh --store minio --cuts 3 --seed 1
        step "power cuts on MinIO without a log" ci/powercut.sh --store minio --mode through --cuts 3 --seed 1
        step "power cuts, MinIO not syncing" ci/powercut.sh --store minio --mode through --no-fsync
        step "outages" ci/outage.sh 5
    fi
    step "benchmark" ci/bench.sh --short "${without[@]}"
fi
echo "test: $passed passed, 0 failed"
