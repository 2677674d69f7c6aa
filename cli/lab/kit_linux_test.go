package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/internal/polling"
)

// soon bounds what takes a second or two on an idle machine. It is a bound on liveness for a machine that is anything but idle.
const soon = 60 * time.Second

// cluster is a lab with what tests ask of it.
type cluster struct {
	*Lab
	client kubernetes.Interface
}

// openCluster opens a lab with the test image on every peer. It is closed with the test, and then nothing may be left.
func openCluster(t *testing.T, peers int, joinArgs ...string) *cluster {
	t.Helper()
	return openClusterOf(t, Config{Peers: peers, JoinArgs: joinArgs})
}

// openClusterOf is openCluster for a lab with peculiarities.
func openClusterOf(t *testing.T, config Config) *cluster {
	t.Helper()
	config.Binary = tools.peer
	l, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Lab: l}
	t.Cleanup(func() {
		if t.Failed() {
			c.keepLogs(t)
		}
		sockets := tunnelSockets(l)
		if err := l.Close(); err != nil {
			t.Errorf("closing the lab: %v", err)
		}
		if left := leftovers(l, sockets); len(left) > 0 {
			t.Errorf("the lab left behind:\n%s", strings.Join(left, "\n"))
		}
	})
	if c.client, err = l.Client(); err != nil {
		t.Fatal(err)
	}
	for _, peer := range l.Peers {
		if _, err := peer.Command(t.Context(), "image", "import", tools.image); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *cluster) keepLogs(t *testing.T) {
	dir, err := os.MkdirTemp("", "shoal-failed-")
	if err != nil {
		return
	}
	for _, peer := range c.Peers {
		if text, err := os.ReadFile(peer.Log); err == nil {
			_ = os.WriteFile(filepath.Join(dir, peer.Name+".log"), text, 0o600)
		}
		var network []byte
		for _, line := range []string{"ip -4 address", "ip -4 route show table all", "ip -4 neighbour", "ss -tlnp", "ss -tn", "nft list ruleset"} {
			_ = peer.host.do(func() error {
				command := strings.Fields(line)
				out, err := exec.CommandContext(context.Background(), command[0], command[1:]...).CombinedOutput()
				network = fmt.Appendf(network, "# %s\n%s\n", line, out)
				return err
			})
		}
		_ = os.WriteFile(filepath.Join(dir, peer.Name+".network"), network, 0o600)
	}
	t.Logf("the peers' logs, and what their hosts' network looked like, are in %s", dir)
}

// command makes a program of the host see the cluster through its kubeconfig, and a home of its own.
func (c *cluster) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, program, args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "HOME="+c.Dir)
	return command
}

// try runs a program and returns what it printed on both streams.
func (c *cluster) try(ctx context.Context, stdin, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	command := c.command(ctx, program, args...)
	command.Stdin = strings.NewReader(stdin)
	out, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}

// kubectl is the unmodified one; it must succeed.
func (c *cluster) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.try(t.Context(), "", tools.kubectl, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused is kubectl with something that must fail, and say all of the wanted.
func (c *cluster) refused(t testing.TB, stdin string, wanted []string, args ...string) {
	t.Helper()
	out, err := c.try(t.Context(), stdin, tools.kubectl, args...)
	if err == nil {
		t.Errorf("kubectl %s succeeded: %s", strings.Join(args, " "), out)
		return
	}
	wants(t, out, wanted...)
}

func wants(t testing.TB, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

// apply brings manifests into a namespace.
func (c *cluster) apply(t testing.TB, namespace, manifests string) {
	t.Helper()
	if out, err := c.try(t.Context(), manifests, tools.kubectl, "apply", "-n", namespace, "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// namespace makes one for a test; it is deleted afterwards, and on failure described before.
func (c *cluster) namespace(t *testing.T, name string) string {
	t.Helper()
	c.kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if t.Failed() {
			what, _ := c.try(ctx, "", tools.kubectl, "get", "all,endpointslices,events", "-n", name, "-o", "wide")
			t.Logf("namespace %s:\n%s", name, what)
			c.showFailed(ctx, t, name)
		}
		if _, err := c.try(ctx, "", tools.kubectl, "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	return name
}

// showFailed logs what ails pods that are not ready: how their containers ended, and what they said.
func (c *cluster) showFailed(ctx context.Context, t *testing.T, namespace string) {
	list, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, pod := range list.Items {
		if ready(&pod) {
			continue
		}
		now, _ := c.try(ctx, "", tools.kubectl, "logs", "-n", namespace, pod.Name, "--all-containers")
		before, _ := c.try(ctx, "", tools.kubectl, "logs", "-n", namespace, pod.Name, "--all-containers", "--previous")
		t.Logf("pod %s: %+v\nit says: %s\nand said before: %s", pod.Name, pod.Status.ContainerStatuses, now, before)
	}
}

var errNotYet = errors.New("not yet")

// eventually asks again until check is content, and fails with its last complaint.
func eventually(t testing.TB, limit time.Duration, what string, check func(ctx context.Context) error) {
	t.Helper()
	polling.Until(t, 100*time.Millisecond, limit, what, check)
}

// podIs waits until a pod is as wanted, and returns it.
func (c *cluster) podIs(t testing.TB, namespace, name, what string, is func(pod *corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var found *corev1.Pod
	eventually(t, soon, fmt.Sprintf("pod %s/%s is %s", namespace, name, what), func(ctx context.Context) error {
		pod, err := c.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !is(pod) {
			return fmt.Errorf("it is %s, %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		found = pod
		return nil
	})
	return found
}

func ready(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// readyPods waits until n pods with a label are ready, and returns these.
func (c *cluster) readyPods(t testing.TB, limit time.Duration, namespace, label string, n int) []corev1.Pod {
	t.Helper()
	var found []corev1.Pod
	eventually(t, limit, fmt.Sprintf("%d pods with %s in %s are ready", n, label, namespace), func(ctx context.Context) error {
		list, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: label})
		if err != nil {
			return err
		}
		found = nil
		for _, pod := range list.Items {
			if ready(&pod) {
				found = append(found, pod)
			}
		}
		if len(found) != n {
			return fmt.Errorf("%d of %d are", len(found), len(list.Items))
		}
		return nil
	})
	return found
}

// eventSays waits until an event about an object has a reason and says all of the wanted.
func (c *cluster) eventSays(t testing.TB, namespace, object, reason string, wanted ...string) {
	t.Helper()
	eventually(t, soon, fmt.Sprintf("event %s of %s says %q", reason, object, wanted), func(ctx context.Context) error {
		list, err := c.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var said []string
	events:
		for _, event := range list.Items {
			if event.InvolvedObject.Name != object {
				continue
			}
			said = append(said, event.Reason+": "+event.Message)
			if event.Reason != reason {
				continue
			}
			for _, want := range wanted {
				if !strings.Contains(event.Message, want) {
					continue events
				}
			}
			return nil
		}
		return fmt.Errorf("events: %s", strings.Join(said, " | "))
	})
}

// sh is a pod manifest whose only container runs a shell script.
func sh(name, script string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    command: [sh, -c, %q]
`, name, name, testImage, script)
}

// web is a Deployment of the answering program on port 8080.
func web(name string, replicas int, answer string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 2
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: %[1]s}}}
      containers:
      - name: web
        image: %[3]s
        args: [serve, "8080"]
        env: [{name: ANSWER, value: %[4]s}]
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
`, name, replicas, testImage, answer)
}

// stateful is the manifest of a StatefulSet with its headless Service, up to the middle of its pods' spec: what follows is indented by six.
func stateful(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {clusterIP: None, selector: {app: %[1]s}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %[1]s}
spec:
  serviceName: %[1]s
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1`, name, replicas)
}
