#!/usr/bin/env bash
# Runs the simulator: seeded faults, crashes and power cuts against the client, judged by a model.
#
#   ci/sim.sh                       what `cargo test -p sim` runs: the fakes, the judges, 2,200 seeds
#   ci/sim.sh SEEDS [FIRST]         that many seeds, from FIRST (0) on
#   ci/sim.sh sweep SECONDS         fresh seeds on all processors until the time is up; adds a line to the ledger
#   ci/sim.sh planted [BUG...]      bugs planted in the client, all of them until noticed; then: does each fault matter
#   ci/sim.sh replay SEED[:PARTS]   one run, with all that happened; a failure prints this command
#   ci/sim.sh enumerate             no seed at all: every crash of every short sequence of operations (minutes)
#
# Sweeps end with `sim: seeds=N hours=N ops=N crashes=N faults=N failures=N` (hours of simulated time) and
# `marks: reached=N/N`. Every failure is followed by a shorter run that fails in the same way, if one is found.
#
# KISEKI_SIM_LINES: how many of its last lines a replay shows (all).
# KISEKI_SIM_LEDGER: where the ledger is (target/sim-ledger.txt).

set -euo pipefail
# shellcheck source=ci/lib.sh
. "$(dirname "$0")/lib.sh"

case ${1:-} in -h | --help) print_usage; exit 0 ;; esac
cd "$root"
# A variable would hide the flags in .cargo/config.toml, without which there is no simulator.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

is_number() { [[ $1 =~ ^[0-9]+$ ]]; }
simulator() { cargo test --quiet --locked -p sim --test sim -- "$@"; }

# $1: seconds.
sweep() {
    local ledger=${KISEKI_SIM_LEDGER:-$root/target/sim-ledger.txt} log status=0 revision
    log=$(mktemp)
    # shellcheck disable=SC2064 # the file is known here only
    trap "rm -f '$log'" EXIT
    cargo test --quiet --locked -p sim --test sim --no-run
    simulator sweep "$1" | tee "$log" || status=$?
    grep -q '^sim: seeds=' "$log" || die "the sweep did not end"
    revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
    [ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision+changes
    mkdir -p "$(dirname "$ledger")"
    printf '%s %s %s; %s\n' "$(date -u +%FT%TZ)" "$revision" \
        "$(sed -n 's/^sim: //p' "$log")" "$(sed -n 's/^faults: //p' "$log")" >>"$ledger"
    return "$status"
}

case ${1:-} in
"") exec cargo test --locked -p sim ;;
replay)
    [ $# = 2 ] || usage_error "which seed?"
    simulator replay "$2"
    ;;
enumerate)
    [ $# = 1 ] || usage_error "enumerate takes no argument"
    KISEKI_ENUMERATE=full cargo test --quiet --locked -p kiseki-core --test enumerate -- --nocapture every_crash
    ;;
planted)
    shift
    cargo test --quiet --locked -p sim --test planted -- bugs "$@"
    [ $# != 0 ] || cargo test --quiet --locked -p sim --test planted -- faults
    ;;
sweep)
    { [ $# = 2 ] && is_number "$2"; } || usage_error "for how many seconds?"
    sweep "$2"
    ;;
*)
    { [ $# -le 2 ] && is_number "$1" && is_number "${2:-0}"; } || usage_error "not a number of seeds: $*"
    simulator seeds "$1" "${2:-0}"
    ;;
esac
