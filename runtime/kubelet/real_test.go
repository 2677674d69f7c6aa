package kubelet

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/remotecommand"

	"shoal/runtime/pods"
)

func realPod(name string, containers ...corev1.Container) *corev1.Pod {
	grace := int64(10)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: "node-a", RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, ServiceAccountName: "robot", Containers: containers},
	}
}

func realContainer(name string, args ...string) corev1.Container {
	return corev1.Container{Name: name, Image: probeImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: args, TerminationMessagePath: "/dev/termination-log"}
}

func mounts(c corev1.Container, list ...corev1.VolumeMount) corev1.Container {
	c.VolumeMounts = list
	return c
}

func (n *realNode) delete(pod *corev1.Pod) {
	n.t.Helper()
	gone := pod.DeepCopy()
	grace := int64(1) // a process that is asked before it listens to signals does not hear it
	gone.DeletionTimestamp, gone.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Now()}, &grace
	n.agent.Upsert(gone)
	waitFor(n.t, func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.deleted[pod.UID] })
}

func (n *realNode) logs(path string) string {
	n.t.Helper()
	resp, err := http.Get(n.url + "/containerLogs/default/" + path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		n.t.Fatalf("%d %s %v", resp.StatusCode, body, err)
	}
	return string(body)
}

// One pod with all that pods have: init containers in order, every kind of content, env, limits, users, probes, streams, and its end.
func TestRealPod(t *testing.T) {
	n := newRealNode(t)
	n.objects["default/conf"] = &corev1.ConfigMap{Data: map[string]string{"key": "from the map"}}
	n.objects["default/cred"] = &corev1.Secret{Data: map[string][]byte{"pass": []byte("secret!")}}
	host := t.TempDir()
	vol := func(name string, s corev1.VolumeSource) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: s}
	}
	at := func(name, path string) corev1.VolumeMount { return corev1.VolumeMount{Name: name, MountPath: path} }
	ref := corev1.LocalObjectReference{Name: "conf"}

	show := mounts(realContainer("show", "cat", "/conf/key", "/cred/pass", "/all/token", "/all/labels", "/shared/first", "/etc/hosts", "/etc/resolv.conf"),
		at("conf", "/conf"), at("cred", "/cred"), at("all", "/all"), at("shared", "/shared"))
	main := mounts(realContainer("main", "serve", "127.0.0.1:8080"), at("shared", "/shared"), at("mem", "/mem"))
	main.Env = []corev1.EnvVar{{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}, {Name: "FULL", Value: "ip=$(IP)"}}
	main.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/probe", "write", "/mem/ready"}}}}
	main.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi"), corev1.ResourceCPU: resource.MustParse("500m")}
	main.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(1234)), AllowPrivilegeEscalation: ptr(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
	pod := realPod("full", main)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(4321))}
	pod.Spec.InitContainers = []corev1.Container{
		mounts(realContainer("first", "write", "/shared/first"), corev1.VolumeMount{Name: "shared", MountPath: "/shared"}, corev1.VolumeMount{Name: "host", MountPath: "/host", SubPath: "made"}), show,
	}
	pod.Spec.Volumes = []corev1.Volume{
		vol("conf", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref}}),
		vol("cred", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "cred"}}),
		vol("shared", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		vol("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}),
		vol("host", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}),
		vol("all", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
		}}}),
	}
	n.agent.Set([]*corev1.Pod{pod})
	s := n.wait(pod, "ready", isReady)
	if first := s.InitContainerStatuses[0].State.Terminated; first == nil || first.Reason != "Completed" || !strings.HasPrefix(s.ContainerStatuses[0].ContainerID, "containerd://") {
		t.Errorf("status %+v", s)
	}
	shown := n.logs("full/show")
	for _, want := range []string{"from the map", "secret!", "token of default/robot", `app="full"`, "10.32.0.1\tfull\n", "nameserver 169.254.20.10\nsearch default.svc.cluster.local"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the container does not see %q:\n%s", want, shown)
		}
	}
	if _, err := os.Stat(filepath.Join(host, "made")); err != nil {
		t.Error(err)
	}
	var out bytes.Buffer
	modelled := node{url: n.url}
	if err := modelled.exec(t, "/exec/default/full/main", url.Values{"command": {"/probe", "show", "env", "ids", "status", "hostname"}, "output": {"1"}}, remotecommand.StreamOptions{Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"env FULL=ip=10.32.0.1", "env HOSTNAME=full", "ids 1234 0 [", "4321", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "Seccomp:\t2", "hostname full"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("exec does not show %q:\n%s", want, out.String())
		}
	}
	if code, body := modelled.get(t, "/stats/summary"); code != 200 || !strings.Contains(body, `"name":"main"`) || !strings.Contains(body, `"workingSetBytes"`) {
		t.Errorf("summary %d %s", code, body)
	}
	n.delete(pod)
	inventory, err := n.engine.List(t.Context())
	if err != nil || len(inventory.Sandboxes)+len(inventory.Containers) > 0 {
		t.Errorf("left: %+v %v", inventory, err)
	}
	if left, err := os.ReadDir(filepath.Join(n.dir, "volumes", "disk")); err != nil || len(left) > 0 {
		t.Errorf("volumes left: %v %v", left, err)
	}
	waitFor(t, func() bool {
		left, err := os.ReadDir(filepath.Join(n.dir, "agent", "logs"))
		return err == nil && len(left) == 0
	})
}

func ptr[T any](v T) *T { return &v }

// The peer ends and comes back: what runs goes on, what ended meanwhile is known, what should not run any more is stopped.
func TestRealPodsOutliveTheAgent(t *testing.T) {
	n := newRealNode(t)
	keep, ends, gone := realPod("keep", realContainer("main", "sleep")), realPod("ends", realContainer("main", "sleep", "1.5")), realPod("gone", realContainer("main", "stubborn"))
	ends.Spec.RestartPolicy = corev1.RestartPolicyNever
	gone.Spec.TerminationGracePeriodSeconds = ptr(int64(1))
	n.agent.Set([]*corev1.Pod{keep, ends, gone})
	for _, p := range []*corev1.Pod{keep, ends, gone} {
		n.wait(p, "ready", isReady)
	}
	before := n.status(keep)
	n.stop()
	time.Sleep(time.Until(n.status(ends).ContainerStatuses[0].State.Running.StartedAt.Add(3 * time.Second)))
	n.start()
	n.agent.Set([]*corev1.Pod{keep, ends})
	s := n.wait(ends, "succeeded", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded })
	if got := s.ContainerStatuses[0].State.Terminated; got == nil || got.ExitCode != 0 {
		t.Errorf("ended meanwhile: %+v", s.ContainerStatuses[0])
	}
	waitFor(t, func() bool {
		inventory, err := n.engine.List(t.Context())
		return err == nil && len(inventory.Sandboxes) == 1
	})
	now, err := n.agent.Pod("default", "keep", "")
	if err != nil || now.Status.ContainerStatuses[0].ContainerID != before.ContainerStatuses[0].ContainerID || now.Status.ContainerStatuses[0].RestartCount != 0 || !isReady(now.Status) {
		t.Errorf("kept: %+v %v", now.Status, err)
	}
}

// A container that fails is restarted, and its end and log are kept.
func TestRealCrash(t *testing.T) {
	n := newRealNode(t)
	c := realContainer("main", "exit", "3")
	c.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	bad := realContainer("bad")
	bad.Command = []string{"/does-not-exist"}
	pod, broken := realPod("crash", c), realPod("broken", bad)
	n.agent.Set([]*corev1.Pod{pod, broken})
	s := n.wait(pod, "in back-off", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	last := s.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 3 || last.Reason != "Error" || !strings.Contains(last.Message, "to stdout\n") || !strings.Contains(last.Message, "to stderr\n") {
		t.Errorf("last state %+v", last)
	}
	if got := n.logs("crash/main?previous=true&stream=Stderr"); got != "to stderr\n" {
		t.Errorf("log %q", got)
	}
	s = n.wait(broken, "explained", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].LastTerminationState.Terminated != nil
	})
	if last := s.ContainerStatuses[0].LastTerminationState.Terminated; last.Reason != "StartError" || !strings.Contains(last.Message, "does-not-exist") {
		t.Errorf("last state %+v", last)
	}
}

// A pod takes little longer, from the moment the agent hears of it until its readiness is reported, than the runtime needs for its
// sandbox and container. Both are measured in turn, so that a busy machine slows both.
func TestRealPodStartsFast(t *testing.T) {
	n := newRealNode(t)
	n.agent.Set(nil)
	const rounds = 10
	var whole, floor []time.Duration
	for i := range rounds {
		pod := realPod(fmt.Sprintf("p%d", i), realContainer("main", "sleep"))
		begun := time.Now()
		n.agent.Upsert(pod)
		n.wait(pod, "ready", isReady)
		whole = append(whole, time.Since(begun))
		floor = append(floor, n.bareStart(fmt.Sprintf("bare-%d", i)))
		n.delete(pod)
	}
	slices.Sort(whole)
	slices.Sort(floor)
	t.Logf("pod → ready: p50 %s, slowest %s; sandbox and container alone: p50 %s", whole[rounds/2], whole[rounds-1], floor[rounds/2])
	if whole[rounds/2] > 2*floor[rounds/2]+20*time.Millisecond {
		t.Errorf("the agent more than doubles what the runtime needs")
	}
}

// bareStart is how long the engine alone takes for a sandbox and a running container.
func (n *realNode) bareStart(uid string) time.Duration {
	n.t.Helper()
	ctx := n.t.Context()
	begun := time.Now()
	_, err := n.engine.CreateSandbox(ctx, pods.SandboxSpec{PodUID: uid, Namespace: "default", Name: uid, CgroupParent: "besteffort/pod" + uid})
	if err != nil {
		n.t.Fatal(err)
	}
	c, err := n.engine.Create(ctx, pods.ContainerSpec{PodUID: uid, PodName: uid, Name: "main", Image: probeImage, Args: []string{"sleep"}, LogPath: filepath.Join(n.dir, "bare", uid)})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.engine.Start(ctx, c.ID); err != nil {
		n.t.Fatal(err)
	}
	took := time.Since(begun)
	if err := n.engine.RemoveSandbox(ctx, uid); err != nil {
		n.t.Fatal(err)
	}
	return took
}
