//go:build deps

// Package deps pins what the tree is about to import; it goes when every import stands.
package deps

import (
	_ "github.com/checkpoint-restore/go-criu/v8"
	_ "github.com/containerd/console"
	_ "github.com/containerd/containerd/v2/cmd/containerd/command"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	_ "github.com/containerd/containerd/v2/pkg/shim"
	_ "github.com/containerd/go-runc"
	_ "github.com/opencontainers/cgroups/devices"
	_ "github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/specconv"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	_ "go.etcd.io/etcd/server/v3/embed"
	_ "golang.org/x/sys/unix"
	_ "k8s.io/apiserver/pkg/storage/testing"
	_ "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	_ "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	_ "k8s.io/pod-security-admission/admission"
	_ "k8s.io/component-helpers/resource"
	_ "github.com/fxamacker/cbor/v2"
	_ "github.com/klauspost/compress/zstd"
	_ "google.golang.org/grpc"
	_ "github.com/vishvananda/netns"
	_ "github.com/robfig/cron/v3"
	_ "github.com/BurntSushi/toml"
)
