#!/usr/bin/env bash
# Fuzzes everything that a peer reads from another peer, from users, or from files that somebody may have damaged: each target for so long
# (default 5s).
# The seeds alone are part of every run of the tests.
#
# Only our own packages, and the gossip's, are built with the coverage counters that guide the fuzzer. `go test -fuzz` would build everything
# below them anew too, which for the peer is all of Kubernetes, and link once per target. Inputs that reached something new are made shorter
# for ten runs and not for a minute, which would be the whole of a short run.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:--trimpath -buildvcs=false}"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
found=$(go env GOCACHE)/fuzz # where `go test -fuzz` keeps inputs that reached something new
for package in $(grep -lE '^func Fuzz' --include='*_test.go' -r consensus mesh peer placement runtime sim cli | xargs -n1 dirname | sort -u); do
    go test -c -gcflags='shoal/...=-d=libfuzzer' -gcflags='github.com/hashicorp/...=-d=libfuzzer' -ldflags '-s -w' -o "$build/fuzz.test" "./$package"
    for target in $(grep -hoE '^func Fuzz\w+' "$package"/*_test.go | sed 's/func //'); do
        echo "$package $target"
        (cd "$package" && "$build/fuzz.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "${1:-5s}" -test.fuzzminimizetime 10x \
            -test.fuzzcachedir "$found/shoal/$package")
    done
done
