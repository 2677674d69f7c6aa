package kubelet

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/internal/polling"
	"shoal/runtime/containerd"
	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
	"shoal/runtime/stats"
	"shoal/runtime/volumes"
)

const probeImage = "shoal.test/probe:1"

// built holds the programs that real nodes run, made once.
var built struct {
	sync.Once
	folder string
	err    error
	image  []byte
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.folder != "" {
		if err := os.RemoveAll(built.folder); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func buildPrograms(t *testing.T) {
	t.Helper()
	built.Do(func() {
		if built.folder, built.err = os.MkdirTemp("", "shoal-node-bin-"); built.err != nil {
			return
		}
		static := []string{"-tags", "seccomp static_build no_systemd osusergo netgo", "-ldflags", "-s -w -linkmode external -extldflags -static"}
		built.err = errors.Join(
			build("peer-shim", "shoal/cli/peer-shim", "CGO_ENABLED=1", static...),
			build("peer-containerd", "shoal/cli/peer-containerd", "CGO_ENABLED=0", "-tags", "no_systemd osusergo netgo", "-ldflags", "-s -w"),
			build("probe", "../containerd/testdata/probe", "CGO_ENABLED=0", "-ldflags", "-s -w"))
		if built.err == nil {
			built.image, built.err = imageTarball(filepath.Join(built.folder, "probe"))
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
}

func build(name, pkg, env string, flags ...string) error {
	command := exec.Command("go", append(append([]string{"build", "-o", filepath.Join(built.folder, name)}, flags...), pkg)...)
	command.Env = append(os.Environ(), env)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// imageTarball is an image of one program, as docker save writes it.
func imageTarball(program string) ([]byte, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err = w.WriteHeader(&tar.Header{Name: "probe", Mode: 0o755, Size: int64(len(data))})
	if err == nil {
		_, err = w.Write(data)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	made, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, made)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config.OS, config.Architecture, config.Config = "linux", "amd64", v1.Config{Entrypoint: []string{"/probe"}}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, err
	}
	tag, err := name.NewTag(probeImage)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = tarball.Write(tag, image, &out)
	return out.Bytes(), err
}

// realNode is the node agent on a containerd of its own, with real volumes and the kubelet API in front.
type realNode struct {
	t       *testing.T
	dir     string
	daemon  *containerd.Daemon
	engine  *containerd.Engine
	network *podstest.Network // addresses only: the mesh's work is not tested here
	agent   *pods.Agent
	url     string
	stop    func()

	mu       sync.Mutex
	statuses map[types.UID]corev1.PodStatus
	deleted  map[types.UID]bool
	objects  map[string]any
	events   []string
}

func newRealNode(t *testing.T) *realNode {
	t.Helper()
	buildPrograms(t)
	dir, err := os.MkdirTemp("", "shoal-node-")
	if err != nil {
		t.Fatal(err)
	}
	n := &realNode{t: t, dir: dir, network: &podstest.Network{}, statuses: map[types.UID]corev1.PodStatus{}, deleted: map[types.UID]bool{}, objects: map[string]any{}}
	t.Cleanup(n.destroy)
	if n.daemon, err = containerd.StartDaemon(t.Context(), containerd.DaemonConfig{
		Program: filepath.Join(built.folder, "peer-containerd"), Root: filepath.Join(dir, "containerd"), StateDir: containerd.StateDir(dir), Logger: n.logger(),
	}); err != nil {
		t.Fatal(err)
	}
	n.start()
	if _, err := n.engine.Import(t.Context(), bytes.NewReader(built.image)); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *realNode) logger() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(n.t.Output(), nil))
	}
	return slog.New(slog.DiscardHandler)
}

// start opens engine, volumes, agent and API, as a peer does when it starts.
func (n *realNode) start() {
	n.t.Helper()
	if n.engine != nil {
		if err := n.engine.Close(); err != nil {
			n.t.Fatal(err)
		}
	}
	var err error
	must := func(what string) {
		n.t.Helper()
		if err != nil {
			n.t.Fatalf("%s: %v", what, err)
		}
	}
	n.engine, err = containerd.Open(n.t.Context(), containerd.Config{
		Socket: n.daemon.Socket(), StateDir: containerd.StateDir(n.dir), Shim: filepath.Join(built.folder, "peer-shim"),
		CgroupRoot: "/" + filepath.Base(n.dir) + "/pods", Logger: n.logger(),
	})
	must("engine")
	objects := pods.Objects{ConfigMap: get[corev1.ConfigMap](n), Secret: get[corev1.Secret](n), Token: n.token}
	manager, err := volumes.New(volumes.Config{Dir: filepath.Join(n.dir, "volumes"), Objects: objects, Logger: n.logger()})
	must("volumes")
	n.agent, err = pods.New(pods.Config{
		Engine: n.engine, Network: n.network, Volumes: manager, Objects: objects, NodeName: "node-a", DataDir: filepath.Join(n.dir, "agent"),
		HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Logger: n.logger(),
		Reports: pods.Reports{Status: n.report, Deleted: n.remove, Event: n.event},
	})
	must("agent")
	node, err := stats.New(stats.Config{Engine: n.engine, NodeName: "node-a", DataDir: n.dir, Pods: n.agent.Pods, VolumeUsage: manager.Usage, LogDir: n.agent.LogDir, Logger: n.logger()})
	must("stats")
	server, err := New(Config{Agent: n.agent, Streams: n.engine, Stats: node, Authorize: func(*http.Request) error { return nil }, Logger: n.logger()})
	must("kubelet")
	web := httptest.NewServer(server)
	n.url = web.URL
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.agent.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
		web.Close()
		n.stop = nil
	}
}

func (n *realNode) destroy() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var errs []error
	if n.stop != nil {
		n.stop()
		errs = append(errs, n.engine.Teardown(ctx))
	}
	if n.daemon != nil {
		errs = append(errs, n.daemon.Close(true))
	}
	errs = append(errs, volumes.RemoveAll(filepath.Join(n.dir, "volumes")), os.RemoveAll(containerd.StateDir(n.dir)), os.RemoveAll(n.dir))
	if err := errors.Join(errs...); err != nil {
		n.t.Errorf("cleaning up: %v", err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(n.dir)) || bytes.Contains(mounts, []byte(containerd.StateDir(n.dir))) {
		n.t.Errorf("mounts were left behind (%v)", err)
	}
}

// get reads an object of a type by "namespace/name".
func get[T any](n *realNode) func(context.Context, string, string) (*T, error) {
	return func(_ context.Context, namespace, name string) (*T, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if v, ok := n.objects[namespace+"/"+name].(*T); ok {
			return v, nil
		}
		return nil, apierrors.NewNotFound(corev1.Resource("objects"), name)
	}
}

func (n *realNode) token(_ context.Context, namespace, account string, _ authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequestStatus, error) {
	return &authenticationv1.TokenRequestStatus{Token: "token of " + namespace + "/" + account, ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour))}, nil
}

func (n *realNode) report(_ context.Context, pod *corev1.Pod, s corev1.PodStatus) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.statuses[pod.UID] = s
	return nil
}

func (n *realNode) remove(_ context.Context, pod *corev1.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deleted[pod.UID] = true
	n.statuses[pod.UID] = pod.Status
	return nil
}

func (n *realNode) event(pod *corev1.Pod, _, _, reason, message string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, pod.Name+" "+reason+": "+message)
}

func (n *realNode) status(pod *corev1.Pod) corev1.PodStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.statuses[pod.UID]
	return *s.DeepCopy()
}

// wait polls a pod's reported status until it is as wanted.
func (n *realNode) wait(pod *corev1.Pod, what string, ok func(s corev1.PodStatus) bool) corev1.PodStatus {
	n.t.Helper()
	var s corev1.PodStatus
	polling.Until(n.t, 2*time.Millisecond, 15*time.Second, pod.Name+" is "+what, func(context.Context) error {
		if s = n.status(pod); ok(s) {
			return nil
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		return fmt.Errorf("status %+v\nevents %q", s, n.events)
	})
	return s
}

func isReady(s corev1.PodStatus) bool {
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
