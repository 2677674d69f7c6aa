package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/utils/exec"

	"shoal/internal/polling"
	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
	"shoal/runtime/stats"
)

// node is a kubelet API over an agent with a modelled engine, running one pod.
type node struct {
	agent  *pods.Agent
	engine *podstest.Engine
	url    string
	refuse error
	pod    *corev1.Pod
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{engine: podstest.NewEngine("img:1")}
	n.engine.Program = func(pods.ContainerSpec) podstest.Program { return podstest.Program{Exec: shell} }
	n.engine.Dial = func(ctx context.Context, _, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "[::1]") {
			return nil, errors.New("connection refused")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	agent, err := pods.New(pods.Config{
		Engine: n.engine, Network: &podstest.Network{}, Volumes: &podstest.Volumes{}, NodeName: "node-a", DataDir: t.TempDir(),
		HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Logger: slog.New(slog.DiscardHandler),
		Reports: pods.Reports{
			Status:  func(context.Context, *corev1.Pod, corev1.PodStatus) error { return nil },
			Deleted: func(context.Context, *corev1.Pod) error { return nil },
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.agent = agent
	node, err := stats.New(stats.Config{Engine: n.engine, NodeName: "node-a", DataDir: t.TempDir(), Pods: agent.Pods})
	if err != nil {
		t.Fatal(err)
	}
	server, err := New(Config{Agent: agent, Streams: n.engine, Stats: node, Logger: slog.New(slog.DiscardHandler), Authorize: func(*http.Request) error { return n.refuse }})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server)
	n.url = web.URL
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	t.Cleanup(func() {
		web.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	n.pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u-1"},
		Spec:       corev1.PodSpec{NodeName: "node-a", RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "main", Image: "img:1"}, {Name: "absent", Image: "none:1", ImagePullPolicy: corev1.PullNever}}},
	}
	agent.Set([]*corev1.Pod{n.pod})
	waitFor(t, func() bool { _, err := agent.Container("u-1", "main"); return err == nil })
	return n
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	polling.Until(t, 5*time.Millisecond, 5*time.Second, "it happens", func(context.Context) error {
		if !ok() {
			return errors.New("it did not")
		}
		return nil
	})
}

// shell is the modelled containers' only program.
func shell(command []string, stdio pods.Stdio) (int, error) {
	switch command[0] {
	case "cat":
		_, err := io.Copy(stdio.Out, stdio.In)
		return 0, err
	case "fail":
		fmt.Fprint(stdio.Err, "it failed")
		return 3, nil
	case "size":
		size := <-stdio.Resize
		fmt.Fprintf(stdio.Out, "%dx%d", size.Width, size.Height)
		return 0, nil
	}
	return 127, pods.ErrStart
}

func (n *node) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get(n.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// exec runs a command through the SPDY client that kubectl and the API server's translator use.
func (n *node) exec(t *testing.T, path string, query url.Values, options remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(n.url + path + "?" + query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return executor.StreamWithContext(ctx, options)
}

func TestExec(t *testing.T) {
	n := newNode(t)
	var out, errOut bytes.Buffer
	err := n.exec(t, "/exec/default/web/main", url.Values{"command": {"cat"}, "input": {"1"}, "output": {"1"}}, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out})
	if err != nil || out.String() != "hello" {
		t.Errorf("cat: %q %v", out.String(), err)
	}
	err = n.exec(t, "/exec/default/web/u-1/main", url.Values{"command": {"fail"}, "output": {"1"}, "error": {"1"}}, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 3 || errOut.String() != "it failed" {
		t.Errorf("fail: %v %q", err, errOut.String())
	}
	out.Reset()
	err = n.exec(t, "/exec/default/web/main", url.Values{"command": {"size"}, "output": {"1"}, "tty": {"1"}},
		remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: &sizes{list: []remotecommand.TerminalSize{{Width: 80, Height: 24}}}})
	if err != nil || out.String() != "80x24" {
		t.Errorf("size: %q %v", out.String(), err)
	}
	for path, want := range map[string]int{
		"/exec/default/web/main?output=1":                 400,
		"/exec/default/none/main?command=x&output=1":      404,
		"/exec/default/web/other/main?command=x&output=1": 404,
		"/exec/default/web/nope?command=x&output=1":       404,
		"/exec/default/web/main?command=x":                400,
	} {
		if code, body := n.get(t, path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// sizes is a terminal that was resized some times.
type sizes struct{ list []remotecommand.TerminalSize }

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.list) == 0 {
		return nil
	}
	next := s.list[0]
	s.list = s.list[1:]
	return &next
}

func TestExecOverWebSocket(t *testing.T) {
	n := newNode(t)
	dialer := websocket.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}}
	conn, resp, err := dialer.Dial("ws"+strings.TrimPrefix(n.url, "http")+"/exec/default/web/main?command=fail&output=1&error=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resp.Body.Close()
	got := map[byte]string{}
	for {
		_, data, err := conn.ReadMessage()
		if err != nil {
			break
		}
		got[data[0]] += string(data[1:])
	}
	if got[2] != "it failed" || !strings.Contains(got[3], `"message":"3"`) {
		t.Errorf("channels %q", got)
	}
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	var out bytes.Buffer
	err := n.exec(t, "/attach/default/web/main", url.Values{"input": {"1"}, "output": {"1"}}, remotecommand.StreamOptions{Stdin: strings.NewReader("typed"), Stdout: &out})
	if err != nil || out.String() != "typed" {
		t.Errorf("%q %v", out.String(), err)
	}
}

func TestPortForward(t *testing.T) {
	n := newNode(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "from the pod") }))
	defer backend.Close()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(backend.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(n.url + "/portForward/default/web")
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u), []string{"0:" + port}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	for range 3 {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d", ports[0].Local))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "from the pod" {
			t.Errorf("%q %v", body, err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAuthorisationAndLists(t *testing.T) {
	n := newNode(t)
	for path, want := range map[string]string{
		"/healthz": "ok", "/pods": `"kind":"PodList"`, "/runningpods/": `"name":"web"`, "/stats/summary": `"podRef":{"name":"web","namespace":"default"`,
		"/metrics/resource": `container_memory_working_set_bytes{container="main",namespace="default",pod="web"} 1.048576e+06`,
	} {
		if code, body := n.get(t, path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	n.refuse = errors.New("user x may not")
	for _, path := range []string{"/pods", "/containerLogs/default/web/main", "/exec/default/web/main?command=x&output=1", "/portForward/default/web", "/stats/summary", "/metrics/resource", "/attach/default/web/main"} {
		if code, _ := n.get(t, path); code != http.StatusForbidden {
			t.Errorf("%s: %d without permission", path, code)
		}
	}
	if code, _ := n.get(t, "/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
}

// logLine is one line in CRI format.
func logLine(at time.Time, stream, tag, text string) string {
	return at.UTC().Format(time.RFC3339Nano) + " " + stream + " " + tag + " " + text + "\n"
}

func TestLogs(t *testing.T) {
	n := newNode(t)
	path := n.agent.LogPath(n.pod, "main", 0)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	write := func(path string, lines ...string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path+".2", logLine(t0, "stdout", "F", "1"), logLine(t0.Add(time.Second), "stderr", "F", "2"))
	write(path+".1", logLine(t0.Add(2*time.Second), "stdout", "P", "3a"), logLine(t0.Add(2*time.Second), "stdout", "F", "3b"))
	write(path, logLine(t0.Add(3*time.Second), "stdout", "F", "4"), logLine(time.Now(), "stdout", "F", "5"), "garbage\n")
	const base = "/containerLogs/default/web/main"
	for query, want := range map[string]string{
		"":                                "1\n2\n3a3b\n4\n5\n",
		"?tailLines=3":                    "4\n5\n",
		"?tailLines=5":                    "3a3b\n4\n5\n",
		"?tailLines=0":                    "",
		"?tailLines=999":                  "1\n2\n3a3b\n4\n5\n",
		"?limitBytes=4":                   "1\n2\n",
		"?limitBytes=5":                   "1\n2\n3",
		"?sinceSeconds=60":                "5\n",
		"?sinceTime=2026-01-02T03:04:08Z": "4\n5\n",
		"?stream=Stderr":                  "2\n",
		"?timestamps=true&limitBytes=33":  "2026-01-02T03:04:05.000000006Z 1\n",
	} {
		if code, body := n.get(t, base+query); code != 200 || body != want {
			t.Errorf("%q: %d %q, want %q", query, code, body, want)
		}
	}
	for path, want := range map[string]string{
		base + "?tailLines=x":               "tailLines",
		base + "?previous=true":             `previous terminated container "main" in pod "web" not found`,
		"/containerLogs/default/web/absent": `container "absent" in pod "web" is waiting to start: ErrImageNeverPull`,
		"/containerLogs/default/web/nope":   `container "nope" in pod "web" is not available`,
	} {
		if code, body := n.get(t, path); code != http.StatusBadRequest || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestFollowedLogSurvivesRotationAndEnds(t *testing.T) {
	n := newNode(t)
	path := n.agent.LogPath(n.pod, "main", 0)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(n.url + "/containerLogs/default/web/main?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := 0
	var want strings.Builder
	appendLine := func() {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines++
		fmt.Fprintf(&want, "line %d\n", lines)
		text := logLine(time.Now(), "stdout", "F", fmt.Sprintf("line %d", lines))
		for _, part := range []string{text[:10], text[10:]} { // a reader may see half a line
			if _, err := f.WriteString(part); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for i := range 60 {
		appendLine()
		if i%20 == 19 {
			for k := 2; k >= 1; k-- {
				_ = os.Rename(fmt.Sprintf("%s.%d", path, k), fmt.Sprintf("%s.%d", path, k+1)) // those that exist
			}
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	appendLine()
	n.engine.Exit("u-1", "main", 0, false)
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != want.String() {
		t.Errorf("followed %d bytes of %d: %v\n%s", len(body), want.Len(), err, body)
	}
	// The container was restarted: what was followed is now the log before.
	waitFor(t, func() bool { c, err := n.agent.Container("u-1", "main"); return err == nil && c.Attempt == 1 })
	waitFor(t, func() bool {
		code, body := n.get(t, "/containerLogs/default/web/main?previous=true")
		return code == 200 && body == want.String()
	})
}

func FuzzLogReaderNeverFails(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05Z stdout F x\n"), int64(1), int64(0))
	f.Add([]byte("\n\n \n"), int64(2), int64(3))
	f.Fuzz(func(t *testing.T, data []byte, tail, limit int64) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		r := logReader{path: path, options: logOptions{tail: max(-1, tail), limit: max(0, limit)}, running: func() bool { return false }}
		if err := r.copy(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		if limit > 0 && int64(out.Len()) > limit {
			t.Errorf("%d bytes above the limit %d", out.Len(), limit)
		}
	})
}
