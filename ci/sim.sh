#!/usr/bin/env bash
# Runs the simulator: seeded faults, crashes and power cuts against the client, judged by a model.
#
#   ci/sim.sh [SEEDS [FIRST]]   that many seeds (100), from FIRST (0) on, and the tests of the judges themselves
#   ci/sim.sh replay SEED       one seed, with the last lines of what happened
#   ci/sim.sh enumerate         no seed at all: every crash of every short sequence of operations (minutes)
#
# KISEKI_SIM_LINES: how many lines a replay shows (200).

set -euo pipefail
# shellcheck source=ci/lib.sh
. "$(dirname "$0")/lib.sh"

case ${1:-} in -h | --help) print_usage; exit 0 ;; esac
cd "$root"
# A variable would hide the flags in .cargo/config.toml, without which there is no simulator.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

if [ "${1:-}" = replay ]; then
    [ $# = 2 ] || usage_error "which seed?"
    KISEKI_SIM_SEED=$2 exec cargo test --quiet --locked -p sim --test seeds -- --nocapture replay
fi

if [ "${1:-}" = enumerate ]; then
    [ $# = 1 ] || usage_error "enumerate takes no argument"
    KISEKI_ENUMERATE=full exec cargo test --quiet --locked -p kiseki-core --test enumerate -- --nocapture every_crash
fi

seeds=${1:-100}
[[ $seeds =~ ^[1-9][0-9]*$ && ${2:-0} =~ ^[0-9]+$ ]] || usage_error "not a number of seeds: $*"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
say "building"
cargo test --quiet --locked -p sim --no-run
say "the fakes and the judges"
cargo test --quiet --locked -p sim -- --skip every_seed >"$log" 2>&1 || { cat "$log"; die "the simulator itself is broken"; }
say "$seeds seeds"
status=0
KISEKI_SIM_SEEDS=$seeds KISEKI_SIM_FIRST=${2:-0} \
    cargo test --quiet --locked -p sim --test seeds -- --nocapture every_seed >"$log" 2>&1 || status=$?
grep -vE '^sim: seeds=|^$|^running|^test result|^\.$' "$log" || true
grep '^sim: seeds=' "$log" || die "the sweep did not end"
exit "$status"
