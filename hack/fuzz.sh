#!/usr/bin/env bash
# Fuzzes everything that a peer reads from another peer, or from files that somebody may have damaged: each target for so long (default 5s).
# The seeds alone are part of every run of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
for package in consensus consensus/store consensus/logstore peer/identity peer/backup mesh/membership peer; do
    for target in $(grep -hoE '^func Fuzz\w+' "$package"/*_test.go | sed 's/func //'); do
        echo "$package $target"
        go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-5s}" "./$package"
    done
done
