#!/usr/bin/env bash
# Runs every test: the quick start, style, purity of the core, unit tests, simulator, fuzz targets, mounted tests, and
# the scripts that compare with real programs, crashes, power cuts and POSIX suites, these in a short form.
#
#   ci/test.sh          everything
#   ci/test.sh --full   the scripts in their long form (hours)
#
# Needs root (or sudo) for loop devices, other users and dropping caches. Installs what is missing. Last line of each
# script: its figures; of the whole: `test: N passed, 0 failed` with N steps. Stops at the first failure.

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

full=
case ${1:-} in
-h | --help) print_usage; exit 0 ;;
--full) full=1 ;;
'') ;;
*) usage_error "unknown argument $1" ;;
esac
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

# One profile for what contains RocksDB, another for the rest: neither is built twice.
plain=(-p kiseki-core -p sim -p fuzz)
step "dependencies" bash ci/dep.sh test
step "release build" cargo build --release --locked -p kiseki -p torture
step "quick start" quickstart
step "format" cargo fmt --all --check
step "core does no I/O" ci/pure.sh
step "lints" cargo clippy --locked "${plain[@]}" --all-targets -- -D warnings
step "lints of the runtime" cargo clippy --release --locked -p kiseki -p torture --all-targets -- -D warnings
step "unit tests, simulator, fuzz targets" cargo test --locked "${plain[@]}"
step "mounted tests" cargo test --release --locked -p kiseki -p torture
if [ -n "$full" ]; then
    step "real programs" ci/tree.sh file
    step "kills" ci/crash.sh --kills 100 --seed 1
    step "power cuts" ci/powercut.sh --cuts 20 --seed 1
    step "power cuts, fsync doing nothing" ci/powercut.sh --no-fsync
    step "fsx" ci/fsx.sh 100000 1 2 3
    step "pjdfstest" ci/pjdfstest.sh
    step "benchmark" ci/bench.sh
else
    step "real programs" ci/tree.sh file --short
    step "kills" ci/crash.sh --kills 24 --seed 1
    step "power cuts" ci/powercut.sh --cuts 5 --seed 1
    step "power cuts, fsync doing nothing" ci/powercut.sh --no-fsync
    step "fsx" ci/fsx.sh 10000 1 2
    step "pjdfstest" ci/pjdfstest.sh
    step "benchmark" ci/bench.sh --short --report
fi
echo "test: $passed passed, 0 failed"
