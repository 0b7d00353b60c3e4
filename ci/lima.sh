#!/usr/bin/env bash
# Checks ci/lima.yaml with limactl, which it builds if it is not there (a minute; needs Go).
#
# Fails on an error, on anything that limactl warns of (a misspelt field is only a warning to it), and if dep.sh would
# not reach the machine as it is. Starts no machine. Last line: lima: valid

set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) print_usage; exit 0 ;;
'') ;;
*) usage_error "unknown argument $1" ;;
esac

version=1.2.1
limactl=$tools/bin/limactl
make_work lima

build_limactl() {
    local go
    [ "$("$limactl" --version 2>/dev/null)" != "limactl version $version" ] || return 0
    go=$(command -v go || command -v /usr/local/go/bin/go) || die "limactl is built from source: install Go (ci/dep.sh minio)"
    say "building limactl $version into $tools/bin"
    # `go install` refuses it, for its go.mod replaces modules: a module that requires it does not see that.
    mkdir "$work/build"
    cat >"$work/build/go.mod" <<EOT
module kiseki.invalid/limactl

go 1.24

require github.com/lima-vm/lima v$version
EOT
    cat >"$work/build/tools.go" <<EOT
//go:build tools

package tools

import _ "github.com/lima-vm/lima/cmd/limactl"
EOT
    mkdir -p "$tools/bin"
    # Without the user's flags. An older Go fetches the one that this asks for.
    (cd "$work/build" && env GOFLAGS= GOWORK=off GOTOOLCHAIN=auto "$go" build -mod=mod -o limactl \
        -ldflags "-s -w -X github.com/lima-vm/lima/pkg/version.Version=$version" github.com/lima-vm/lima/cmd/limactl) ||
        die "cannot build limactl $version"
    mv "$work/build/limactl" "$limactl"
}
build_limactl

# limactl refuses root, and another user may neither read this checkout nor write into this home.
mkdir "$work/home" "$work/ci"
cp "$limactl" "$root/ci/lima.yaml" "$root/ci/dep.sh" "$work/ci/"
chmod -R a+rX "$work/ci"
run=(env -i "PATH=$PATH" "HOME=$work/home" "$work/ci/limactl")
if [ "$(id -u)" = 0 ]; then
    chown nobody "$work/home"
    run=(runuser -u nobody -- "${run[@]}")
fi

"${run[@]}" validate "$work/ci/lima.yaml" >"$work/out" 2>&1 || { cat "$work/out" >&2; die "ci/lima.yaml is not valid"; }
! grep -q 'level=\(warning\|error\)' "$work/out" || { cat "$work/out" >&2; die "ci/lima.yaml: limactl warns"; }

# Some versions of Lima change what they carry: what looks like an escape or a template in it.
"${run[@]}" template yq "$work/ci/lima.yaml" '.provision[] | select(.path == "*/dep.sh") | .content' >"$work/carried" 2>"$work/out" ||
    { cat "$work/out" >&2; die "limactl cannot read ci/lima.yaml"; }
# (The command substitution drops the line end that yq adds.)
printf '%s\n' "$(cat "$work/carried")" | diff "$root/ci/dep.sh" - >&2 ||
    die "dep.sh would not reach the machine as it is: write those lines in another way"
echo "lima: valid"
