//go:build linux

package containerd_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcrname "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"shoal/internal/polling"
	"shoal/runtime/containerd"
	"shoal/runtime/pods"
)

// The programs under test, built once for all tests.
var programs struct{ shim, daemon, probe string }

const imageName = "shoal.test/probe:1"

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "shoal-engine-bin-")
	if err == nil {
		err = buildPrograms(folder)
	}
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := os.RemoveAll(folder); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildPrograms(folder string) error {
	build := func(name, pkg string, env []string, flags ...string) (string, error) {
		path := filepath.Join(folder, name)
		command := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), pkg)...)
		command.Env = append(os.Environ(), env...)
		if out, err := command.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
		return path, nil
	}
	var err error
	if programs.shim, err = build("peer-shim", "shoal/cli/peer-shim", []string{"CGO_ENABLED=1"},
		"-tags", "seccomp static_build no_systemd osusergo netgo", "-ldflags", "-s -w -linkmode external -extldflags -static"); err != nil {
		return err
	}
	if programs.daemon, err = build("peer-containerd", "shoal/cli/peer-containerd", []string{"CGO_ENABLED=0"},
		"-tags", "no_systemd osusergo netgo", "-ldflags", "-s -w"); err != nil {
		return err
	}
	programs.probe, err = build("probe", "./testdata/probe", []string{"CGO_ENABLED=0"}, "-ldflags", "-s -w")
	return err
}

// host is one peer's container runtime: a daemon and an engine on it.
type host struct {
	t          testing.TB
	dataDir    string
	stateDir   string
	cgroupRoot string
	logs       string
	daemon     *containerd.Daemon
	engine     *containerd.Engine
	change     func(*containerd.Config)
	unmount    string // a test's own file system, or empty
}

// newHost starts both, with the test image; everything is gone after the test.
func newHost(t testing.TB, change func(*containerd.Config)) *host {
	t.Helper()
	h := emptyHost(t, change)
	h.startDaemon()
	h.open()
	if _, err := h.engine.Import(t.Context(), bytes.NewReader(probeTarball(t))); err != nil {
		t.Fatal(err)
	}
	return h
}

// emptyHost has its folders and starts nothing.
func emptyHost(t testing.TB, change func(*containerd.Config)) *host {
	t.Helper()
	dataDir, err := os.MkdirTemp("", "shoal-engine-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{
		t:          t,
		dataDir:    dataDir,
		stateDir:   containerd.StateDir(dataDir),
		cgroupRoot: "/" + filepath.Base(dataDir) + "/pods",
		logs:       filepath.Join(dataDir, "logs"),
		change:     change,
	}
	t.Cleanup(h.destroy)
	return h
}

func (h *host) startDaemon() {
	h.t.Helper()
	var err error
	h.daemon, err = containerd.StartDaemon(h.t.Context(), containerd.DaemonConfig{
		Program:  programs.daemon,
		Root:     filepath.Join(h.dataDir, "containerd"),
		StateDir: h.stateDir,
		Logger:   h.logger(),
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) logger() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(h.t.Output(), nil))
	}
	return slog.New(slog.DiscardHandler)
}

func (h *host) open() {
	h.t.Helper()
	config := containerd.Config{
		Socket:     h.daemon.Socket(),
		StateDir:   h.stateDir,
		Shim:       programs.shim,
		CgroupRoot: h.cgroupRoot,
		Logger:     h.logger(),
	}
	if h.change != nil {
		h.change(&config)
	}
	var err error
	if h.engine, err = containerd.Open(h.t.Context(), config); err != nil {
		h.t.Fatal(err)
	}
}

// reopen is what a restarted peer does.
func (h *host) reopen() {
	h.t.Helper()
	if err := h.engine.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.open()
}

// destroy removes everything and fails the test if something stays.
func (h *host) destroy() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if h.engine != nil {
		if err := h.engine.Teardown(ctx); err != nil {
			h.t.Errorf("teardown: %v", err)
		}
	}
	if h.daemon != nil {
		if err := h.daemon.Close(true); err != nil {
			h.t.Errorf("stop containerd: %v", err)
		}
	}
	if h.unmount != "" {
		if err := unix.Unmount(h.unmount, 0); err != nil {
			h.t.Errorf("unmount: %v", err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, h.stateDir) || strings.Contains(line, h.dataDir) {
			h.t.Errorf("mount left behind: %s", line)
		}
	}
	for _, hierarchy := range []string{"memory", "cpu", "pids", ""} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", hierarchy, h.cgroupRoot)); err == nil {
			h.t.Errorf("cgroup left behind in %q", hierarchy)
		}
	}
	if out, err := exec.Command("pgrep", "-f", h.stateDir).Output(); err == nil {
		h.t.Errorf("processes left behind: %s", bytes.TrimSpace(out))
	}
	for _, folder := range []string{h.stateDir, h.dataDir} {
		if err := os.RemoveAll(folder); err != nil {
			h.t.Errorf("remove: %v", err)
		}
	}
}

// sandbox makes a sandbox with a new UID.
func (h *host) sandbox(change func(*pods.SandboxSpec)) string {
	h.t.Helper()
	uid := newUID()
	spec := pods.SandboxSpec{PodUID: uid, Namespace: "default", Name: "pod", Hostname: "pod", CgroupParent: "besteffort/pod" + uid}
	if change != nil {
		change(&spec)
	}
	if _, err := h.engine.CreateSandbox(h.t.Context(), spec); err != nil {
		h.t.Fatal(err)
	}
	return uid
}

var uids struct {
	sync.Mutex
	n int
}

func newUID() string {
	uids.Lock()
	defer uids.Unlock()
	uids.n++
	return fmt.Sprintf("00000000-0000-4000-8000-%06d%06d", os.Getpid()%1000000, uids.n)
}

// spec is a container of the test image.
func (h *host) spec(podUID string, command ...string) pods.ContainerSpec {
	return pods.ContainerSpec{
		PodUID:  podUID,
		Name:    "main",
		Image:   imageName,
		Args:    command,
		LogPath: filepath.Join(h.logs, podUID, "main", "0.log"),
	}
}

// run creates and starts.
func (h *host) run(spec pods.ContainerSpec) pods.ContainerState {
	h.t.Helper()
	created, err := h.engine.Create(h.t.Context(), spec)
	if err != nil {
		h.t.Fatal(err)
	}
	state, err := h.engine.Start(h.t.Context(), created.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	return state
}

// state reads one container from the inventory.
func (h *host) state(id string) pods.ContainerState {
	h.t.Helper()
	inventory, err := h.engine.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, c := range inventory.Containers {
		if c.ID == id {
			return c
		}
	}
	h.t.Fatalf("container %s is not listed", id)
	return pods.ContainerState{}
}

// waitExit polls until the container has exited.
func (h *host) waitExit(id string) pods.ContainerState {
	h.t.Helper()
	var state pods.ContainerState
	eventually(h.t, "container exits", func() error {
		state = h.state(id)
		if state.Status != pods.StatusExited {
			return fmt.Errorf("status %s", state.Status)
		}
		return nil
	})
	return state
}

// output returns the contents of a container's log by stream.
func (h *host) output(state pods.ContainerState) map[string]string {
	h.t.Helper()
	data, err := os.ReadFile(state.LogPath)
	if err != nil {
		h.t.Fatal(err)
	}
	streams := map[string]string{}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			h.t.Fatalf("log line %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			h.t.Errorf("log line %q: %v", line, err)
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		streams[fields[1]] += fields[3]
	}
	return streams
}

// finished runs a container to its end and returns what it wrote.
func (h *host) finished(spec pods.ContainerSpec) (pods.ContainerState, string) {
	h.t.Helper()
	state := h.waitExit(h.run(spec).ID)
	out := h.output(state)
	return state, out["stdout"] + out["stderr"]
}

// eventually retries for up to ten seconds.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	polling.Until(t, 5*time.Millisecond, 10*time.Second, what, func(context.Context) error { return check() })
}

// probeImage is built from the probe program and an /etc/passwd.
func probeImage(t testing.TB) v1.Image {
	t.Helper()
	program, err := os.ReadFile(programs.probe)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(name string, mode int64, data []byte) {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}), write(w, data)); err != nil {
			t.Fatal(err)
		}
	}
	add("probe", 0o755, program)
	add("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/probe\napp:x:1000:2000::/home/app:/probe\n"))
	add("etc/group", 0o644, []byte("root:x:0:\napps:x:2000:\nextra:x:3000:app\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	made, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, made)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: []string{"/probe"}, Env: []string{"FROM_IMAGE=yes", "BOTH=image"}, WorkingDir: "/etc"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

func write(w io.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

var probeTar struct {
	sync.Once
	data []byte
}

// probeTarball is the image as docker save would write it.
func probeTarball(t testing.TB) []byte {
	t.Helper()
	probeTar.Do(func() {
		tag, err := ggcrname.NewTag(imageName)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := tarball.Write(tag, probeImage(t), &out); err != nil {
			t.Fatal(err)
		}
		probeTar.data = out.Bytes()
	})
	return probeTar.data
}
