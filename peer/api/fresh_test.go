package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/peer/api"
)

func fakeLeases() []coordinationv1.Lease {
	holder := "here"
	return []coordinationv1.Lease{{
		ObjectMeta: metav1.ObjectMeta{Name: "here", Namespace: corev1.NamespaceNodeLease},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder},
	}}
}

// dialFakeKubelet connects to the fake kubelet of the node "here".
func dialFakeKubelet(_ context.Context, node string) (net.Conn, error) {
	if node != "here" {
		return nil, fmt.Errorf("no node %q", node)
	}
	here, there := net.Pipe()
	go func() {
		_ = http.Serve(&oneConn{conn: there}, fakeKubelet(node))
	}()
	return here, nil
}

// oneConn is a listener that accepts one connection.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, net.ErrClosed
	}
	conn := l.conn
	l.conn = nil
	return conn, nil
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func TestFreshCluster(t *testing.T) {
	ctx := t.Context()
	report(t)
	eventually(t, func() error {
		for _, name := range []string{"default", "kube-node-lease", "kube-public", "kube-system"} {
			ns, err := admin.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if ns.Status.Phase != corev1.NamespaceActive {
				return fmt.Errorf("namespace %s is %s", name, ns.Status.Phase)
			}
		}
		return nil
	})
	for _, name := range []string{"system-cluster-critical", "system-node-critical"} {
		must(admin.SchedulingV1().PriorityClasses().Get(ctx, name, metav1.GetOptions{}))(t)
	}
	must(admin.RbacV1().ClusterRoles().Get(ctx, "cluster-admin", metav1.GetOptions{}))(t)
	service := must(admin.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{}))(t)
	if service.Spec.ClusterIP != "10.96.0.1" || service.Spec.Ports[0].TargetPort.IntValue() != 7443 {
		t.Errorf("kubernetes Service: %+v", service.Spec)
	}
	wantTexts(t, kubectl(t, "", "get", "namespaces"), "default", "kube-node-lease", "kube-public", "kube-system", "Active")
	// kubectl refuses to work with a server whose version it cannot parse
	version := must(admin.Discovery().ServerVersion())(t)
	if version.GitVersion != api.GitVersion || version.Major != "1" || version.Minor != "37" {
		t.Errorf("version %+v", version)
	}
}

// report prints what the server costs at rest, for the record in the test's log.
func report(t *testing.T) {
	runtime.GC()
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
			t.Log(line)
		}
	}
	t.Logf("built in %v, ready in %v, %d goroutines", shared.Built.Round(time.Millisecond), shared.Ready.Round(time.Millisecond), runtime.NumGoroutine())
}

func TestAnonymousSeesHealthOnly(t *testing.T) {
	config := must(shared.Remote(""))(t)
	anonymous := must(kubernetes.NewForConfig(config))(t)
	for _, path := range []string{"/healthz", "/livez", "/readyz", "/version"} {
		if _, err := anonymous.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(t.Context()); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := anonymous.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list of pods: %v, want Forbidden", err)
	}
	if _, err := anonymous.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context()); !apierrors.IsForbidden(err) {
		t.Errorf("metrics: %v, want Forbidden", err)
	}
	if _, err := admin.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context()); err != nil {
		t.Errorf("metrics as admin: %v", err)
	}
}

func TestNodeLeasesComeFromMemory(t *testing.T) {
	leases := admin.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease := must(leases.Get(t.Context(), "here", metav1.GetOptions{}))(t)
	if *lease.Spec.HolderIdentity != "here" {
		t.Errorf("holder %q", *lease.Spec.HolderIdentity)
	}
	list := must(leases.List(t.Context(), metav1.ListOptions{}))(t)
	if len(list.Items) != 1 || list.ResourceVersion == "" {
		t.Errorf("%d leases at %q", len(list.Items), list.ResourceVersion)
	}
	if _, err := leases.Get(t.Context(), "elsewhere", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("unknown lease: %v", err)
	}
}

func TestAuditLog(t *testing.T) {
	kubectl(t, "", "create", "configmap", "audited", "--from-literal=secret=never-logged")
	eventually(t, func() error {
		text, err := os.ReadFile(shared.AuditLog)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(text), "\n") {
			if !strings.Contains(line, `"name":"audited"`) {
				continue
			}
			var event struct{ Verb, Level string }
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				return err
			}
			if strings.Contains(line, "never-logged") {
				t.Error("the audit log has bodies")
			}
			if event.Verb == "create" && event.Level == "Metadata" {
				return nil
			}
		}
		return fmt.Errorf("no event for the configmap")
	})
	info := must(os.Stat(shared.AuditLog))(t)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("audit log has mode %v", info.Mode())
	}
}

func TestNodeProxyAndLogsReachTheKubelet(t *testing.T) {
	ctx := t.Context()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here"}}
	must(admin.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}))(t)
	t.Cleanup(func() { _ = admin.CoreV1().Nodes().Delete(context.Background(), "here", metav1.DeleteOptions{}) })
	out := must(admin.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/here/proxy/stats/summary").DoRaw(ctx))(t)
	if string(out) != "here /stats/summary" {
		t.Errorf("proxy answered %q", out)
	}
	pod := boundPod("default", "logging", "here")
	account(t, "default")
	must(admin.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}))(t)
	text := must(admin.CoreV1().Pods("default").GetLogs("logging", &corev1.PodLogOptions{Container: "main"}).DoRaw(ctx))(t)
	if string(text) != "here /containerLogs/default/logging/main" {
		t.Errorf("log is %q", text)
	}
}

// account creates the default service account, which is a controller's work that does not run here.
func account(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, func() error {
		_, err := admin.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func boundPod(namespace, name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "example.test/image"}}},
	}
}
