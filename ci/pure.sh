#!/usr/bin/env bash
# Proves that core does no I/O, reads no clock and starts no thread.
#
# The compiler does most of it: core is `no_std` and forbids unsafe code, so without `std` there is no way out. What is
# left to check here: who names `std`, what the client takes from it, who is async, and what core depends on.

set -euo pipefail
cd "$(dirname "$0")/.."

bad=0
# Complains about the lines on standard input, if there are any.
none() {
    local lines
    lines=$(cat)
    [ -z "$lines" ] || { printf '%s\n%s\n' "pure: $1:" "$lines" >&2; bad=$((bad + 1)); }
}
# Lines that match, as file:number:line, but not comments, nor the tests at the end of a file. $1: pattern, then files.
lines() {
    local pattern=$1
    shift
    awk -v pattern="$pattern" '
        FNR == 1 { tests = 0; before = "" }
        before ~ /#\[cfg\(test\)\]/ && /^mod [a-z_]+ \{/ { tests = 1 }
        { before = $0 }
        !tests && !/^[[:space:]]*\/\// && $0 ~ pattern { print FILENAME ":" FNR ": " $0 }' "$@"
}
outer_files='^core/src/(client|testkit)(/|\.rs$)'
mapfile -t all < <(find core/src -name '*.rs' -not -name 'tests.rs' -not -name '*_tests.rs' -not -path '*/tests/*' | sort)
mapfile -t pure < <(printf '%s\n' "${all[@]}" | grep -vE "$outer_files")
mapfile -t outer < <(printf '%s\n' "${all[@]}" | grep -E "$outer_files")

none 'core must stay no_std and safe' < <(
    for line in '#![no_std]' '#![forbid(unsafe_code)]'; do
        grep -qxF "$line" core/src/lib.rs || echo "core/src/lib.rs lacks $line"
    done
)

# `std` enters by `extern crate std` alone.
none 'extern crate std outside of the client, the testkit, tests and planted bugs' < <(
    for file in "${pure[@]}"; do
        awk -v file="$file" '
            /^[[:space:]]*extern crate std/ && before !~ /cfg\((test|feature = "planted")\)/ { print file ":" FNR ": " $0 }
            { before = $0 }' "$file"
    done
)

# Only the simulator plants bugs.
none 'the feature planted is for sim alone' < <(
    grep -n '"planted"' ./*/Cargo.toml Cargo.toml | grep -v '^./sim/' || true
)

# The client may lock and keep maps; nothing of std that touches the world.
none 'the client and the testkit may take only sync and collections from std, each path written out' < <(
    lines '(^|[^a-z_])std::' "${outer[@]}" |
        awk '{ line = $0; while (match(line, /(^|[^a-z_])std::[a-z_{]*/)) {
            if (substr(line, RSTART, RLENGTH) !~ /std::(sync|collections)$/) { print; break }
            line = substr(line, RSTART + RLENGTH) } }'
)

# Waiting is the client's business, and the conformance suites'.
none 'async outside of client, testkit and env' < <(
    lines '(^|[^a-z_])async[ {]|\\.await' "${pure[@]}" | grep -v '^core/src/env/'
)

# Its order differs from run to run.
none 'HashMap or HashSet in core, outside of the client' < <(lines 'Hash(Map|Set)' "${pure[@]}")

allowed='bytes hashbrown thiserror tracing xxhash-rust'
none "the dependencies of core are no longer $allowed" < <(
    found=$(cargo tree --locked -p kiseki-core --edges normal --depth 1 --prefix none | sed 1d | awk '{ print $1 }' | sort -u | xargs)
    [ "$found" = "$allowed" ] || echo "$found"
)
none 'a dependency of core is built with std' < <(
    cargo tree --locked -p kiseki-core --edges normal,no-proc-macro,features --prefix none |
        grep -E '^(bytes|thiserror|tracing|tracing-core|xxhash-rust) feature "std"'
)

[ "$bad" = 0 ] || exit 1
echo "pure: ${#pure[@]} files without std, ${#outer[@]} that may lock and wait, $(wc -w <<<"$allowed") dependencies"
