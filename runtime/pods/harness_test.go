package pods_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
)

const nodeName = "node-a"

// cluster is the API as the agent sees it: statuses written, events, final deletes.
type cluster struct {
	mu       sync.Mutex
	statuses map[types.UID]corev1.PodStatus
	writes   map[types.UID]int
	deleted  map[types.UID]corev1.PodStatus
	events   []string
	objects  map[string]any
	answer   func(pod *corev1.Pod, s corev1.PodStatus) // what happens between a status' being stored and the answer that says so
}

func (c *cluster) status(pod *corev1.Pod) corev1.PodStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.statuses[pod.UID]
	return *s.DeepCopy()
}

func (c *cluster) isDeleted(pod *corev1.Pod) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, yes := c.deleted[pod.UID]
	return yes
}

func (c *cluster) eventCount(substring string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, e := range c.events {
		if strings.Contains(e, substring) {
			n++
		}
	}
	return n
}

// rig is an agent with modelled neighbours, inside a synctest bubble.
type rig struct {
	t       *testing.T
	dir     string
	cluster *cluster
	engine  *podstest.Engine
	network *podstest.Network
	volumes *podstest.Volumes
	agent   *pods.Agent
	held    func(*corev1.Pod) bool // by the next agent
	stop    func()
}

func newRig(t *testing.T, dir string) *rig {
	r := &rig{
		t: t, dir: dir, engine: podstest.NewEngine("img:1"), network: &podstest.Network{}, volumes: &podstest.Volumes{},
		cluster: &cluster{statuses: map[types.UID]corev1.PodStatus{}, writes: map[types.UID]int{}, deleted: map[types.UID]corev1.PodStatus{}, objects: map[string]any{}},
	}
	r.engine.Latency = time.Millisecond
	return r
}

// start makes and runs an agent (again). With pods it is told of them before it runs.
func (r *rig) start(known ...*corev1.Pod) {
	r.t.Helper()
	agent, err := pods.New(pods.Config{
		Engine: r.engine, Network: r.network, Volumes: r.volumes, NodeName: nodeName, DataDir: filepath.Join(r.dir, "agent"),
		HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Logger: slog.New(slog.DiscardHandler),
		DNS:     pods.DNS{HostFile: filepath.Join(r.dir, "none")},
		Objects: pods.Objects{ConfigMap: r.cluster.configMap},
		Reports: pods.Reports{Status: r.cluster.report, Deleted: r.cluster.delete, Event: r.cluster.event},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	agent.Hold(r.held)
	if len(known) > 0 {
		agent.Set(known)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	r.agent = agent
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
}

func (c *cluster) configMap(_ context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cm, have := c.objects[namespace+"/"+name].(*corev1.ConfigMap); have {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("configmaps"), name)
}

func (c *cluster) report(_ context.Context, pod *corev1.Pod, s corev1.PodStatus) error {
	c.mu.Lock()
	c.statuses[pod.UID] = s
	c.writes[pod.UID]++
	c.mu.Unlock()
	if c.answer != nil {
		c.answer(pod, s)
	}
	return nil
}

func (c *cluster) delete(_ context.Context, pod *corev1.Pod) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deleted[pod.UID] = pod.Status
	return nil
}

func (c *cluster) event(pod *corev1.Pod, path, kind, reason, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, fmt.Sprintf("%s %s %s %s: %s", pod.Name, path, kind, reason, message))
}

// bubble runs f with a rig in a synctest bubble, with the agent started and stopped around it.
func bubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir) // channels must be made inside
		f(t, r)
		if r.stop != nil {
			r.stop()
		}
	})
}

// after lets virtual time pass and everything settle.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// newPod is a pod bound to the node; edit it with the functions.
func newPod(name string, edits ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), Generation: 1},
		Spec: corev1.PodSpec{
			NodeName: nodeName, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: ptr(int64(30)),
			Containers: []corev1.Container{newContainer("main")},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, e := range edits {
		e(pod)
	}
	return pod
}

func newContainer(name string) corev1.Container {
	return corev1.Container{Name: name, Image: "img:1", ImagePullPolicy: corev1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log"}
}

func sidecar(name string) corev1.Container {
	c := newContainer(name)
	c.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
	return c
}

func ptr[T any](v T) *T { return &v }

func policy(p corev1.RestartPolicy) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Spec.RestartPolicy = p }
}

// deleting is a copy of the pod as the API shows it after kubectl delete.
func deleting(pod *corev1.Pod, grace int64) *corev1.Pod {
	out := pod.DeepCopy()
	out.DeletionTimestamp, out.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Now()}, &grace
	return out
}

// programs gives containers behaviours by name.
func programs(by map[string]podstest.Program) func(pods.ContainerSpec) podstest.Program {
	return func(spec pods.ContainerSpec) podstest.Program { return by[spec.Name] }
}

func containerStatus(t *testing.T, s corev1.PodStatus, name string) corev1.ContainerStatus {
	t.Helper()
	for _, c := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses) {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no status of container %q in %+v", name, s)
	return corev1.ContainerStatus{}
}

func condition(s corev1.PodStatus, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

// callsWith returns the Engine's calls that begin with one of the prefixes.
func (r *rig) callsWith(prefixes ...string) []string {
	var out []string
	for _, c := range r.engine.Calls() {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(c, p) }) {
			out = append(out, c)
		}
	}
	return out
}
