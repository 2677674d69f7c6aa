//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
)

// Mirror is a further place to fetch an image from.
type Mirror struct {
	URL    string       // "https://host:port", without the /v2/ path
	Client *http.Client // nil = the default; peers dial through the peer link
}

// Config says how to open an Engine.
type Config struct {
	// Socket of containerd; absolute. Daemon.Socket for the embedded one.
	Socket string
	// StateDir is the Engine's own folder, absolute and short (sockets lie in
	// it), lost at a reboot. Two engines never share one. StateDir(dataDir) gives a good one.
	StateDir string
	// Shim is the path of peer-shim; see shimbin.Find.
	Shim string
	// SystemShim runs containers by the shim and runc that the system's
	// containerd brings, as older ones must: their shim protocol differs.
	SystemShim bool
	// Namespace inside containerd; default "shoal". Peers that share a system's
	// containerd need one each.
	Namespace string
	// CgroupRoot is the cgroup above all pods, for instance "/shoal/<peer>/pods".
	CgroupRoot string
	// Lease says that Renewed will be called: containers of pods that must not run
	// twice (SandboxSpec.Identity) start only while the lease is young, and are
	// killed by the daemon's watchdog when it is not. See package fence.
	Lease bool
	// Snapshotter is "overlayfs" unless said otherwise.
	Snapshotter string
	// Mirrors returns where else images of a registry ("docker.io") may be had,
	// best first; the registry itself is always tried last. May be nil.
	Mirrors func(ctx context.Context, registry string) []Mirror
	// PlainHTTP says that a registry ("10.0.0.7:5000") is spoken to without TLS.
	// nil: only those on the loopback interface.
	PlainHTTP func(registry string) bool
	Logger    *slog.Logger
}

func (c *Config) complete() error {
	for name, path := range map[string]string{"Socket": c.Socket, "StateDir": c.StateDir, "Shim": c.Shim} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("containerd: %s must be an absolute path, got %q", name, path)
		}
	}
	if len(c.StateDir) > maxStateDir {
		return fmt.Errorf("containerd: state folder %q is longer than %d characters: sockets in it could not be opened", c.StateDir, maxStateDir)
	}
	if !filepath.IsAbs(c.CgroupRoot) || c.CgroupRoot == "/" {
		return errors.New("containerd: CgroupRoot must be absolute and not the root")
	}
	if c.Namespace == "" {
		c.Namespace = "shoal"
	}
	if c.Snapshotter == "" {
		c.Snapshotter = "overlayfs"
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}
