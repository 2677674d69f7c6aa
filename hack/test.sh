#!/usr/bin/env bash
# Runs the whole suite as root: unit, property, in-process and real-kernel tests. A skipped test fails the run, because nobody sees it.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "test: the suite makes network namespaces, mounts and containers: run it as root" >&2
    exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
export CGO_ENABLED=0
# peer-shim is the one program with C in it; the tests of runtime/containerd build and run it.
packages=$(go list ./... | grep -v /cli/peer-shim)
go vet $packages || status=1
# Two packages at a time: more would only fight for the machine, and timing is part of what is tested.
go test -p 2 -timeout 20m -v $packages 2>&1 | tee "$log" | grep -E '^(---? (FAIL|SKIP)|FAIL|ok|panic:|\s+\S+_test\.go:)' || true
grep -qE '^FAIL' "$log" && status=1
passed=$(grep -cE '^--- PASS' "$log" || true)
failed=$(grep -cE '^--- FAIL' "$log" || true)
skipped=$(grep -cE '^\s*--- SKIP' "$log" || true)
if [ "$skipped" != 0 ]; then
    echo "test: $skipped tests were skipped:"
    grep -E '^\s*--- SKIP' "$log"
    status=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit $status
