//go:build linux

// Package daemon is containerd itself, cut down to what an Engine uses: no CRI,
// no image transfer, no metrics, no NRI. It runs as a process of its own, so
// that it outlives the peer and its memory is counted apart. Because it does, it
// is also where package fence watches for the peer's silence.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	_ "github.com/containerd/containerd/api/types/runc/options" // the runtime's options are decoded here
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	"github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	// The plugins: containerd is what is registered by importing.
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"shoal/runtime/containerd/fence"
)

// gcPercent makes the collector run at a quarter more than the live heap. The
// daemon allocates little; its idle memory counts.
const gcPercent = 25

// Main runs the daemon until SIGTERM or SIGINT. The containers it started keep
// running; a later daemon with the same folders takes them up.
func Main(args []string) error {
	flags := flag.NewFlagSet("containerd", flag.ContinueOnError)
	root := flags.String("root", "", "folder of images, snapshots and metadata")
	state := flags.String("state", "", "folder of what is lost at a reboot")
	socket := flags.String("address", "", "socket to listen on")
	shims := flags.String("shim-sockets", "", "folder of the shims' sockets")
	fenceDir := flags.String("fence", "", "state folder of the peer whose pods to fence when it falls silent; empty for none")
	fenceAfter := flags.Duration("fence-after", fence.KillAfter, "age of its last renewal at which they are killed")
	level := flags.String("log-level", "warn", "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for name, value := range map[string]string{"root": *root, "state": *state, "address": *socket, "shim-sockets": *shims} {
		if !filepath.IsAbs(value) {
			return fmt.Errorf("--%s must be an absolute path, got %q", name, value)
		}
	}
	if err := log.SetLevel(*level); err != nil {
		return err
	}
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if *fenceDir != "" {
		watchdog := fence.Watchdog{Dir: fence.Dir(*fenceDir), KillAfter: *fenceAfter}
		// Before containerd, and not waited for: it may hang, at its start too.
		go func() {
			if err := watchdog.Run(ctx); err != nil {
				slog.Error("pods that must not run twice are not watched", "err", err)
			}
		}()
	}
	return serve(ctx, newConfig(*root, *state, *socket, *shims))
}

// newConfig is what other containerds read from config.toml.
func newConfig(root, state, socket, shims string) *config.Config {
	return &config.Config{
		Version: 4,
		Root:    root,
		State:   state,
		RequiredPlugins: []string{
			"io.containerd.runtime.v2.task", "io.containerd.shim.v1.manager", "io.containerd.metadata.v1.bolt",
			"io.containerd.gc.v1.scheduler", "io.containerd.server.v1.grpc", "io.containerd.server.v1.ttrpc",
		},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":   map[string]any{"address": socket},
			"io.containerd.server.v1.ttrpc":  map[string]any{"address": socket + ".ttrpc"},
			"io.containerd.shim.v1.manager":  map[string]any{"socket_dir": shims},
			"io.containerd.gc.v1.scheduler":  map[string]any{"schedule_delay": "1s", "startup_delay": "5s"},
			"io.containerd.metadata.v1.bolt": map[string]any{"content_sharing_policy": "shared"},
		},
	}
}

func serve(ctx context.Context, config *config.Config) error {
	signal.Ignore(unix.SIGPIPE) // the peer that reads our log may be gone

	if err := server.CreateTopLevelDirectories(config); err != nil {
		return err
	}
	if err := mount.SetTempMountLocation(filepath.Join(config.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("temporary mounts: %w", err)
	}
	// Mounts of a killed predecessor.
	warnings, err := mount.CleanupTempMounts(0)
	if err = errors.Join(append(warnings, err)...); err != nil {
		slog.Warn("temporary mounts of an earlier run stay", "err", err)
	}
	// New blocks in the database's lock while another daemon owns the folder;
	// a signal must still end this one.
	type result struct {
		server *server.Server
		err    error
	}
	made := make(chan result, 1)
	go func() {
		s, err := server.New(ctx, config)
		made <- result{s, err}
	}()
	var s *server.Server
	select {
	case <-ctx.Done():
		return ctx.Err()
	case r := <-made:
		if r.err != nil {
			return r.err
		}
		s = r.server
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	s.Wait()
	debug.FreeOSMemory() // what starting needed
	<-ctx.Done()
	s.Stop()
	_ = os.Stdout.Sync()
	return nil
}
