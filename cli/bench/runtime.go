package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"shoal/examples"
	"shoal/runtime/containerd"
	"shoal/runtime/containerd/shimbin"
	"shoal/runtime/pods"
)

// bare runs the demo's server by the OCI runtime alone: no daemon, no network, no API.
type bare struct {
	runtime, root, bundle string
	made                  int
}

// newBare makes a bundle whose root file system is that of the demo's image: one static program.
func (s *session) newBare(program string) (*bare, error) {
	runtime, err := shimbin.Find(shimbin.Shim, filepath.Join(s.dir, "bin"))
	if err != nil {
		return nil, err
	}
	b := &bare{runtime: runtime, root: filepath.Join(s.dir, "runc"), bundle: filepath.Join(s.dir, "bundle")}
	rootfs := filepath.Join(b.bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(rootfs, "web"), content, 0o755); err != nil {
		return nil, err
	}
	spec, err := json.Marshal(bareSpec("/" + filepath.Base(s.dir) + "/bare"))
	if err != nil {
		return nil, err
	}
	return b, os.WriteFile(filepath.Join(b.bundle, "config.json"), spec, 0o644)
}

// bareSpec has what every container needs, and no more.
func bareSpec(cgroup string) specs.Spec {
	return specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/web"}, Cwd: "/", Env: []string{"PATH=/"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{CgroupsPath: cgroup, Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
			{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		}},
	}
}

// run times one "run --detach", which returns with the program running, and removes the container.
func (b *bare) run(ctx context.Context) (time.Duration, error) {
	b.made++
	id := fmt.Sprintf("bare-%d", b.made)
	begun := time.Now()
	// No pipes: the container would hold them open.
	err := exec.CommandContext(ctx, b.runtime, "--root", b.root, "run", "--detach", "--bundle", b.bundle, id).Run()
	took := time.Since(begun)
	if err != nil {
		return 0, fmt.Errorf("%s run: %w", filepath.Base(b.runtime), err)
	}
	if out, err := exec.CommandContext(ctx, b.runtime, "--root", b.root, "delete", "--force", id).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s delete: %w: %s", filepath.Base(b.runtime), err, out)
	}
	return took, nil
}

// engine is a containerd of its own, without a peer.
type engine struct {
	*containerd.Engine
	daemon *containerd.Daemon
	state  string
	logs   string
	// took is the daemon's time from start until it answered.
	took time.Duration
	made int
}

// newEngine starts a containerd beside those of the lab, in folders of its own.
func (s *session) newEngine(ctx context.Context) (*engine, error) {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	root, err := os.MkdirTemp(s.dir, "containerd-")
	if err != nil {
		return nil, err
	}
	state := containerd.StateDir(root)
	bin := filepath.Join(s.dir, "bin")
	shim, err := shimbin.Find(shimbin.Shim, bin)
	if err != nil {
		return nil, err
	}
	program, err := shimbin.Find(shimbin.Containerd, bin)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	daemon, err := containerd.StartDaemon(ctx, containerd.DaemonConfig{Program: program, Root: root, StateDir: state, Logger: quiet})
	if err != nil {
		return nil, err
	}
	took := time.Since(begun)
	opened, err := containerd.Open(ctx, containerd.Config{
		Socket: daemon.Socket(), StateDir: state, Shim: shim, CgroupRoot: "/" + filepath.Base(s.dir) + "/pods", Logger: quiet,
	})
	if err != nil {
		return nil, errors.Join(err, daemon.Close(true))
	}
	return &engine{Engine: opened, daemon: daemon, state: state, logs: filepath.Join(root, "logs"), took: took}, nil
}

func (e *engine) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return errors.Join(e.Teardown(ctx), e.daemon.Close(true), os.RemoveAll(e.state))
}

// load imports the tarball of the demo's image.
func (e *engine) load(ctx context.Context, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = e.Import(ctx, file)
	return err
}

// up starts containers of the demo's image, each in a sandbox of its own, so many at a time, and returns the sandboxes.
func (e *engine) up(ctx context.Context, count, width int) ([]string, error) {
	uids := make([]string, count)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(width)
	for i := range uids {
		e.made++
		uids[i] = fmt.Sprintf("00000000-0000-4000-8000-%012d", e.made)
		group.Go(func() error { return e.start(ctx, uids[i]) })
	}
	return uids, group.Wait()
}

func (e *engine) start(ctx context.Context, uid string) error {
	if _, err := e.CreateSandbox(ctx, pods.SandboxSpec{
		PodUID: uid, Namespace: "bench", Name: uid, Hostname: "bench", CgroupParent: "besteffort/pod" + uid,
	}); err != nil {
		return err
	}
	made, err := e.Create(ctx, pods.ContainerSpec{
		PodUID: uid, Namespace: "bench", PodName: uid, Name: "web", Image: examples.WebImage,
		LogPath: filepath.Join(e.logs, uid, "0.log"),
	})
	if err != nil {
		return err
	}
	_, err = e.Start(ctx, made.ID)
	return err
}

// down removes sandboxes with what is in them.
func (e *engine) down(ctx context.Context, uids []string, width int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(width)
	for _, uid := range uids {
		group.Go(func() error { return e.RemoveSandbox(ctx, uid) })
	}
	return group.Wait()
}
