package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOnePeer proves what a single peer does for its user. Everything but the restarts runs beside each other on one lab.
func TestOnePeer(t *testing.T) {
	c := openCluster(t, 1)
	t.Run("promises", func(t *testing.T) {
		for _, promise := range []struct {
			name string
			test func(t *testing.T, c *cluster)
		}{
			// Those that wait for a minute first.
			{"a Deployment scales with its load", scalesWithLoad},
			{"a CronJob runs its Jobs", cronJobRuns},
			{"a pod gets its environment and volumes", podEnvironment},
			{"a crashing container backs off", crashLoopBacksOff},
			{"a fresh cluster has its namespaces", freshNamespaces},
			{"kubectl and peer answer alike", kubectlAndPeerAlike},
			{"a Deployment rolls and is undone", deploymentRolls},
			{"requests and limits are the kernel's", limitsHold},
			{"probes of every kind", probesDecide},
			{"a container out of memory is OOMKilled", outOfMemory},
			{"logs follow a container", logsFollow},
			{"exec has a terminal", execTerminal},
			{"a port is forwarded", portForwarded},
			{"files are copied", filesCopied},
			{"termination has a grace period", terminationGrace},
			{"a Job completes and another fails", jobsEnd},
			{"a StatefulSet starts in order", statefulSetInOrder},
			{"a StatefulSet has volumes without any set-up", volumesWithoutSetup},
			{"volumes of other kinds", volumesThatCannotBe},
			{"a DaemonSet has a pod per node", daemonSetEverywhere},
			{"an image is pulled with a pull secret", imagePulled},
			{"an image that does not exist is named", imageMissing},
			{"images are listed", imagesListed},
			{"a pod that fits nowhere is told why", schedulingExplained},
			{"describe shows events", describeShowsEvents},
			{"a custom resource is served", customResource},
			{"server-side apply finds conflicts", applyConflicts},
			{"roles bind other users", rolesBind},
			{"an invalid manifest is refused", manifestRefused},
			{"a namespace is deleted with everything in it", namespaceDeleted},
		} {
			t.Run(promise.name, func(t *testing.T) {
				t.Parallel()
				promise.test(t, c)
			})
		}
	})
	t.Run("pods outlive kill -9 of the peer", func(t *testing.T) { podsOutlive(t, c, "kill", (*Peer).KillProcess) })
	t.Run("pods outlive a restart of the peer", func(t *testing.T) {
		podsOutlive(t, c, "term", func(p *Peer) error {
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			return p.Stop(ctx)
		})
	})
}

func freshNamespaces(t *testing.T, c *cluster) {
	for _, program := range []string{tools.kubectl, tools.peer} {
		out, err := c.try(t.Context(), "", program, "get", "namespaces", "--no-headers")
		if err != nil {
			t.Fatal(err)
		}
		active := map[string]bool{}
		for line := range strings.Lines(out) {
			if fields := strings.Fields(line); len(fields) > 1 {
				active[fields[0]] = fields[1] == "Active"
			}
		}
		for _, name := range []string{"default", "kube-node-lease", "kube-public", "kube-system"} {
			if !active[name] {
				t.Errorf("%s is not Active:\n%s", name, out)
			}
		}
	}
}

func kubectlAndPeerAlike(t *testing.T, c *cluster) {
	for _, args := range [][]string{
		{"get", "nodes", "-o", "name"}, {"get", "service", "kubernetes", "-o", "wide", "--no-headers"}, {"api-resources", "--no-headers", "--sort-by=name"},
		{"explain", "pod.spec.containers.livenessProbe"}, {"auth", "can-i", "--list"}, {"get", "--raw", "/version"},
	} {
		var said [2]string
		for i, program := range []string{tools.kubectl, tools.peer} {
			out, err := c.try(t.Context(), "", program, args...)
			if err != nil {
				t.Fatal(err)
			}
			said[i] = out
		}
		if said[0] != said[1] && args[0] != "get" || strings.TrimSpace(said[0]) == "" {
			t.Errorf("%s: kubectl says\n%s\npeer says\n%s", strings.Join(args, " "), said[0], said[1])
		}
	}
	wants(t, c.kubectl(t, "get", "--raw", "/version"), `"major": "1"`, `"minor": "37`)
}

func deploymentRolls(t *testing.T, c *cluster) {
	ns := c.namespace(t, "rolls")
	c.apply(t, ns, web("web", 3, "one"))
	wants(t, c.kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=60s"), "successfully rolled out")
	first := c.readyPods(t, soon, ns, "app=web", 3)

	c.kubectl(t, "-n", ns, "set", "env", "deployment/web", "ANSWER=two")
	wants(t, c.kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=60s"), "successfully rolled out")
	for _, pod := range c.readyPods(t, soon, ns, "app=web", 3) {
		if pod.Spec.Containers[0].Env[0].Value != "two" {
			t.Errorf("pod %s is of the old template", pod.Name)
		}
	}
	wants(t, c.kubectl(t, "-n", ns, "rollout", "history", "deployment/web"), "REVISION", "1", "2")

	c.kubectl(t, "-n", ns, "rollout", "undo", "deployment/web")
	c.kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=60s")
	hash := first[0].Labels["pod-template-hash"]
	if hash == "" {
		t.Error("pods have no pod-template-hash")
	}
	c.readyPods(t, soon, ns, "pod-template-hash="+hash, 3)
	eventually(t, soon, "the other ReplicaSet is empty", func(context.Context) error {
		if out := c.kubectl(t, "-n", ns, "get", "replicasets", "-o", "jsonpath={.items[*].status.replicas}"); out != "0 3" && out != "3 0" {
			return fmt.Errorf("replicas: %s", out)
		}
		return nil
	})
	c.kubectl(t, "-n", ns, "scale", "deployment/web", "--replicas=1")
	c.readyPods(t, soon, ns, "app=web", 1)
}

func podEnvironment(t *testing.T, c *cluster) {
	ns := c.namespace(t, "environment")
	host := t.TempDir()
	c.kubectl(t, "-n", ns, "create", "configmap", "settings", "--from-literal=colour=blue", "--from-literal=size=42")
	c.kubectl(t, "-n", ns, "create", "secret", "generic", "keys", "--from-literal=password=s3cret")
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {tier: back}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: %[1]s, command: [sh, -c, "echo prepared > /shared/file; echo here > /host/file"], volumeMounts: [{name: shared, mountPath: /shared}, {name: host, mountPath: /host}]}
  - {name: second, image: %[1]s, command: [sh, -c, "grep prepared /shared/file"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: %[1]s
    workingDir: /tmp
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: GREETING, value: "$(COLOUR) $(POD)"}
    envFrom: [{configMapRef: {name: settings}, prefix: SET_}]
    securityContext: {runAsUser: 1234, runAsNonRoot: true}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: settings, mountPath: /settings}
    - {name: keys, mountPath: /keys, readOnly: true}
    - {name: mixed, mountPath: /mixed}
    - {name: memory, mountPath: /memory}
  - {name: beside, image: %[1]s, volumeMounts: [{name: shared, mountPath: /shared}]}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: %[2]s, type: Directory}}
  - {name: settings, configMap: {name: settings, items: [{key: size, path: deep/size}]}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0444}}
  - name: mixed
    projected:
      sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600, audience: e2e}
      - configMap: {name: settings}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
`, testImage, host))
	pod := c.podIs(t, ns, "all", "ready", ready)
	for _, status := range pod.Status.InitContainerStatuses {
		if status.State.Terminated == nil || status.State.Terminated.Reason != "Completed" {
			t.Errorf("init container %s: %+v", status.Name, status.State)
		}
	}
	inside := func(script string) string {
		return strings.TrimSpace(c.kubectl(t, "-n", ns, "exec", "all", "-c", "main", "--", "sh", "-c", script))
	}
	for script, want := range map[string]string{
		"echo $COLOUR/$PASSWORD/$POD/$SET_size":  "blue/s3cret/all/42",
		"echo $GREETING":                         "blue all",
		"echo $ADDRESS":                          pod.Status.PodIP,
		"cat /shared/file":                       "prepared",
		"cat /settings/deep/size":                "42",
		"cat /keys/password":                     "s3cret",
		"cat /mixed/colour":                      "blue",
		"cat /mixed/labels":                      `tier="back"`,
		"id -u":                                  "1234",
		"pwd":                                    "/tmp",
		"mount | grep -c '/memory type tmpfs'":   "1",
		"grep -c cluster.local /etc/resolv.conf": "1",
		"grep -cw all /etc/hosts":                "1",
		"cat /var/run/secrets/kubernetes.io/serviceaccount/namespace": ns,
		"touch /keys/x 2>/dev/null || echo read-only":                 "read-only",
	} {
		if got := inside(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if parts := strings.Split(inside("cat /mixed/token"), "."); len(parts) != 3 {
		t.Errorf("the projected token has %d parts", len(parts))
	}
	wants(t, string(must(t)(readFile(host+"/file"))), "here")

	// Changes of a ConfigMap reach the files of a running pod.
	c.kubectl(t, "-n", ns, "patch", "configmap", "settings", "-p", `{"data":{"colour":"red"}}`)
	eventually(t, 2*soon, "the new colour is in the volume", func(context.Context) error {
		if got := inside("cat /mixed/colour"); got != "red" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

func limitsHold(t *testing.T, c *cluster) {
	ns := c.namespace(t, "limits")
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: small}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 200m, memory: 48Mi}}
`, testImage))
	pod := c.podIs(t, ns, "small", "ready", ready)
	if pod.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("QoS class %s", pod.Status.QOSClass)
	}
	memory := readCgroup(t, pod, "memory.max", "memory/memory.limit_in_bytes")
	if memory != fmt.Sprint(48<<20) {
		t.Errorf("the container's memory limit is %s", memory)
	}
	if quota := readCgroup(t, pod, "cpu.max", "cpu/cpu.cfs_quota_us"); quota != "20000" && quota != "20000 100000" {
		t.Errorf("the container's CPU quota is %s", quota)
	}
}

func probesDecide(t *testing.T, c *cluster) {
	ns := c.namespace(t, "probes")
	for name, probe := range map[string]string{
		"exec": "exec: {command: [test, -f, /tmp/ok]}", "http": "httpGet: {port: 8080, path: /}", "tcp": "tcpSocket: {port: 8080}", "grpc": "grpc: {port: 8081}",
	} {
		c.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %[2]s
    command: [sh, -c, "while [ ! -f /tmp/ok ]; do sleep 0.1; done; exec e2e serve 8080"]
    readinessProbe: {%[3]s, periodSeconds: 1, failureThreshold: 1}
`, name, testImage, probe))
	}
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: alive}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    command: [sh, -c, "touch /tmp/alive; sleep 3; rm /tmp/alive; sleep 1000"]
    startupProbe: {exec: {command: [test, -f, /tmp/alive]}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {exec: {command: [test, -f, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}
`, testImage))
	for _, name := range []string{"exec", "http", "tcp", "grpc"} {
		pod := c.podIs(t, ns, name, "running", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodRunning })
		if ready(pod) {
			t.Errorf("%s is ready before its probe can succeed", name)
		}
		c.eventSays(t, ns, name, "Unhealthy", "Readiness probe failed")
		c.kubectl(t, "-n", ns, "exec", name, "--", "touch", "/tmp/ok")
	}
	for _, name := range []string{"exec", "http", "tcp", "grpc"} {
		c.podIs(t, ns, name, "ready", ready)
	}
	c.kubectl(t, "-n", ns, "exec", "exec", "--", "rm", "/tmp/ok")
	c.podIs(t, ns, "exec", "unready again", func(pod *corev1.Pod) bool { return !ready(pod) })
	c.podIs(t, ns, "alive", "restarted by its liveness probe", func(pod *corev1.Pod) bool {
		return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].RestartCount > 0
	})
	c.eventSays(t, ns, "alive", "Killing", "liveness probe")
}

func crashLoopBacksOff(t *testing.T, c *cluster) {
	ns := c.namespace(t, "crash")
	c.apply(t, ns, sh("crash", "echo falling; exit 3"))
	pod := c.podIs(t, ns, "crash", "in CrashLoopBackOff", func(pod *corev1.Pod) bool {
		return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].RestartCount > 0 &&
			pod.Status.ContainerStatuses[0].State.Waiting != nil && pod.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	last := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("last state %+v", last)
	}
	c.eventSays(t, ns, "crash", "BackOff", "Back-off restarting failed container")
	wants(t, c.kubectl(t, "-n", ns, "logs", "crash", "--previous"), "falling")
	wants(t, c.kubectl(t, "-n", ns, "get", "pod", "crash"), "0/1", "CrashLoopBackOff")
}

func outOfMemory(t *testing.T, c *cluster) {
	ns := c.namespace(t, "memory")
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: %s, command: [sh, -c, "exec tail /dev/zero"], resources: {limits: {memory: 24Mi}}}
`, testImage))
	pod := c.podIs(t, ns, "hungry", "failed", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	ended := pod.Status.ContainerStatuses[0].State.Terminated
	if ended == nil || ended.Reason != "OOMKilled" || ended.ExitCode != 137 {
		t.Errorf("it ended as %+v", ended)
	}
}

func terminationGrace(t *testing.T, c *cluster) {
	ns := c.namespace(t, "grace")
	host := t.TempDir()
	manifest := func(name, script string, seconds int) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: %d
  containers:
  - name: main
    image: %s
    command: [sh, -c, %q]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >> /host/%s"]}}}
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: %s}}]
`, name, seconds, testImage, script, name, host)
	}
	c.apply(t, ns, manifest("polite", "trap 'echo bye >> /host/polite; exit 0' TERM; while true; do sleep 0.1; done", 30))
	c.apply(t, ns, manifest("stubborn", "trap '' TERM; while true; do sleep 0.1; done", 2))
	for _, name := range []string{"polite", "stubborn"} {
		c.podIs(t, ns, name, "ready", ready)
	}
	begun := time.Now()
	c.kubectl(t, "-n", ns, "delete", "pod", "polite", "stubborn")
	took := time.Since(begun)
	if took < 2*time.Second {
		t.Errorf("the stubborn container had %s of its 2 s of grace", took)
	}
	if took > 28*time.Second {
		t.Errorf("deleting took %s: the polite container's end was not noticed", took)
	}
	if text := string(must(t)(readFile(host + "/polite"))); text != "hook\nbye\n" {
		t.Errorf("the polite container wrote %q", text)
	}
}

func schedulingExplained(t *testing.T, c *cluster) {
	ns := c.namespace(t, "nowhere")
	manifest := func(name, with string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  containers: [{name: main, image: %s%s\n", name, testImage, with)
	}
	c.apply(t, ns, manifest("large", ", resources: {requests: {cpu: 1k}}}]"))
	c.apply(t, ns, manifest("picky", "}]\n  nodeSelector: {disk: golden}"))
	c.eventSays(t, ns, "large", "FailedScheduling", "0/1 nodes are available", "Insufficient cpu")
	c.eventSays(t, ns, "picky", "FailedScheduling", "0/1 nodes are available", "node affinity/selector")
	pod := c.podIs(t, ns, "large", "pending", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodPending })
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && (condition.Reason != corev1.PodReasonUnschedulable || !strings.Contains(condition.Message, "Insufficient cpu")) {
			t.Errorf("condition %+v", condition)
		}
	}
	// It is placed as soon as a node fits.
	c.kubectl(t, "label", "node", c.Peers[0].Name, "disk=golden")
	c.podIs(t, ns, "picky", "ready", ready)
	c.kubectl(t, "label", "node", c.Peers[0].Name, "disk-")
}

func describeShowsEvents(t *testing.T, c *cluster) {
	ns := c.namespace(t, "described")
	c.apply(t, ns, sh("shown", "exec e2e pause"))
	c.podIs(t, ns, "shown", "ready", ready)
	c.eventSays(t, ns, "shown", "Started")
	wants(t, c.kubectl(t, "-n", ns, "describe", "pod", "shown"), "Scheduled", "Created", "Started", "Node:", c.Peers[0].Name, "Ready", "True")
	wants(t, c.kubectl(t, "describe", "node", c.Peers[0].Name), "Ready", "Allocated resources", "PodCIDR:", "containerd://")
	wants(t, c.kubectl(t, "-n", ns, "events", "--for", "pod/shown"), "Started")
}

// podsOutlive restarts the peer's process under a running pod.
func podsOutlive(t *testing.T, c *cluster, name string, stop func(*Peer) error) {
	ns := c.namespace(t, "outlive-"+name)
	peer := c.Peers[0]
	c.apply(t, ns, web("web", 2, "still-here")+"---\n"+sh("chatty", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done")+
		"---\n"+"{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}\n")
	before := identities(append(c.readyPods(t, soon, ns, "app=web", 2), c.readyPods(t, soon, ns, "app=chatty", 1)...))
	vip := c.kubectl(t, "-n", ns, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	c.answers(t, "the Service before the restart", peer.host, vip+":80", "still-here")

	if err := stop(peer); err != nil {
		t.Fatal(err)
	}
	// The data plane goes on without the peer.
	c.answers(t, "the Service without the peer", peer.host, vip+":80", "still-here")
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := peer.Await(ctx); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	after := identities(append(c.readyPods(t, soon, ns, "app=web", 2), c.readyPods(t, soon, ns, "app=chatty", 1)...))
	if before != after {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	// What is written from now on is readable, and what was written meanwhile was not lost.
	eventually(t, soon, "new lines are in the log", func(context.Context) error {
		out, err := c.try(t.Context(), "", tools.kubectl, "-n", ns, "logs", "chatty", "--since-time="+back.UTC().Format(time.RFC3339))
		if err != nil {
			return err
		}
		if !strings.Contains(out, "line") {
			return errNotYet
		}
		return nil
	})
	lines := strings.Split(strings.TrimSpace(c.kubectl(t, "-n", ns, "logs", "chatty")), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", i+1); line != want {
			t.Fatalf("line %d of the log is %q", i+1, line)
		}
	}
	// Still managed: exec works, and a deleted pod is replaced.
	wants(t, c.kubectl(t, "-n", ns, "exec", "chatty", "--", "echo", "hello"), "hello")
	c.kubectl(t, "-n", ns, "delete", "pod", "-l", "app=web", "--wait=false")
	eventually(t, soon, "deleted pods are replaced", func(ctx context.Context) error {
		list, err := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		n := 0
		for _, pod := range list.Items {
			if ready(&pod) && !strings.Contains(before, string(pod.UID)) {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("%d of 2 new ones are ready", n)
		}
		return nil
	})
}

// identities is what a restart of the peer must not change.
func identities(pods []corev1.Pod) string {
	lines := map[string]string{}
	for _, pod := range pods {
		for _, status := range pod.Status.ContainerStatuses {
			lines[pod.Name+"/"+status.Name] = fmt.Sprintf("%s %s restarts %d, address %s", pod.UID, status.ContainerID, status.RestartCount, pod.Status.PodIP)
		}
	}
	text, _ := json.MarshalIndent(lines, "", " ")
	return string(text)
}
