#!/usr/bin/env bash
# Builds the two small programs that run beside the peer, compresses them, and puts them where the peer's build embeds them.
#
#   peer-shim        containerd shim and OCI runtime, static, with seccomp: started several times per container, so it is kept small
#   peer-containerd  the container daemon
set -euo pipefail
cd "$(dirname "$0")/.."

out=runtime/containerd/shimbin/binary
mkdir -p bin
CGO_ENABLED=1 go build -tags "seccomp static_build no_systemd osusergo netgo" \
    -ldflags "-s -w -linkmode external -extldflags -static" -o bin/peer-shim ./cli/peer-shim
CGO_ENABLED=0 go build -tags "no_systemd osusergo netgo" -ldflags "-s -w" -o bin/peer-containerd ./cli/peer-containerd
for program in peer-shim peer-containerd; do
    # Compressing takes longer than building: only what changed.
    sum=$(sha256sum <"bin/$program")
    if [ ! -f "$out/$program.zst" ] || [ "$(cat "bin/$program.sum" 2>/dev/null)" != "$sum" ]; then
        zstd -q -f -12 -T0 "bin/$program" -o "$out/$program.zst"
        printf '%s\n' "$sum" >"bin/$program.sum"
    fi
done
