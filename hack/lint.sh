#!/usr/bin/env bash
# Runs the linter. The first run builds it from the Go module proxy, at the version named here, into .tools.
set -euo pipefail
cd "$(dirname "$0")/.."

version=v2.15.0
tool=.tools/golangci-lint-$version
if [ ! -x "$tool" ]; then
    echo "lint: building golangci-lint $version (once, some minutes)"
    mkdir -p .tools
    GOBIN="$PWD/.tools/new" go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
    mv .tools/new/golangci-lint "$tool"
    rmdir .tools/new
fi
# peer-shim is the one program with C in it.
CGO_ENABLED=0 "$tool" run $(go list -f './{{slice .ImportPath 6}}' ./... | grep -v '^./cli/peer-shim')
CGO_ENABLED=1 "$tool" run ./cli/peer-shim/...
