package cli

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

var quiet = log.New(io.Discard, "", 0)

// TestMain lets the test binary stand in for `peer`, since kubectl's verbs end
// the process on errors.
func TestMain(m *testing.M) {
	if os.Getenv("SHOAL_TEST_AS_PEER") == "" {
		os.Exit(m.Run())
	}
	if err := Run(context.Background(), os.Args[1:], Parts{}); err != nil {
		_, _ = io.WriteString(os.Stderr, "peer: "+err.Error()+"\n")
		os.Exit(1)
	}
}

func readyz(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/readyz":
		_, _ = io.WriteString(w, "ok")
	case "/api/v1/namespaces/default/pods/nope", "/api/v1/nope":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods \"nope\" not found","reason":"NotFound","code":404}`)
	default:
		http.NotFound(w, r)
	}
}

func TestKubectlHelpPassesThrough(t *testing.T) {
	for _, line := range []string{"get --help", "get -h", "rollout undo --help", "apply --help"} {
		out, err := invoke(t, Parts{}, strings.Fields(line)...)
		if err != nil || !strings.Contains(out, "Usage:\n  peer "+strings.Fields(line)[0]) {
			t.Errorf("peer %s: %v\n%s", line, err, out)
		}
	}
}

func TestEveryVerbIsKubectls(t *testing.T) {
	out, err := invoke(t, Parts{}, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range kubectlVerbs {
		if verb.hidden {
			continue
		}
		if !strings.Contains(out, verb.name) {
			t.Errorf("the help does not list %s", verb.name)
		}
		help, err := invoke(t, Parts{}, verb.name, "--help")
		if err != nil || !strings.Contains(help, "peer "+verb.name) {
			t.Errorf("peer %s --help: %v\n%s", verb.name, err, help)
		}
	}
}

func TestKubectlUsesTheDataFoldersKubeconfig(t *testing.T) {
	startPeers(t, 1, http.HandlerFunc(readyz))
	out, err := invoke(t, Parts{}, "get", "--raw", "/readyz")
	if err != nil || !strings.Contains(out, "ok") {
		t.Errorf("%v: %q", err, out)
	}
	out, err = invoke(t, Parts{}, "config", "current-context")
	if err != nil || strings.TrimSpace(out) != "p0" {
		t.Errorf("config does not use the same file: %v: %q", err, out)
	}
}

func TestKubectlFailsOver(t *testing.T) {
	peers := startPeers(t, 3, http.HandlerFunc(readyz))
	peers.servers[0].Close()
	peers.servers[1].Close()
	out, err := invoke(t, Parts{}, "get", "--raw", "/readyz")
	if err != nil || !strings.Contains(out, "ok") {
		t.Fatalf("with one of three peers alive: %v: %q", err, out)
	}
	if peers.requests[2].Load() != 1 {
		t.Errorf("the living peer got %d requests", peers.requests[2].Load())
	}
}

// A peer that was stopped, or whose network swallows packets after the
// connection, still completes TCP in the kernel: only TLS tells.
func TestKubectlFailsOverFromAMutePeer(t *testing.T) {
	peers := startPeers(t, 2, http.HandlerFunc(readyz))
	address := peers.servers[0].Listener.Addr().String()
	peers.servers[0].Close()
	mute, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	begin := time.Now()
	out, err := invoke(t, Parts{}, "get", "--raw", "/readyz")
	if err != nil || !strings.Contains(out, "ok") {
		t.Fatalf("%v: %q", err, out)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the mute peer cost %s", took)
	}
}

// A client that lives on, such as `get --watch`, must reach another peer when
// its own goes away, although the certificate there is for other addresses.
func TestDialFailsOverWhileRunning(t *testing.T) {
	peers := startPeers(t, 2, http.HandlerFunc(readyz))
	config, err := restConfig(peers.dataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	get := func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err == nil {
			_ = response.Body.Close()
		}
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	first := slices.IndexFunc(peers.servers, func(s *httptest.Server) bool { return "https://"+s.Listener.Addr().String() == config.Host })
	peers.servers[first].CloseClientConnections()
	peers.servers[first].Close()
	var failed error
	for range 3 { // the first may still use the broken connection
		if failed = get(); failed == nil {
			break
		}
	}
	if failed != nil {
		t.Fatal(failed)
	}
	if peers.requests[1-first].Load() == 0 {
		t.Error("the other peer got no request")
	}
}

func TestForeignClustersAreNoAlternatives(t *testing.T) {
	peers := startPeers(t, 2, http.HandlerFunc(readyz))
	raw, err := clientcmd.LoadFromFile(peers.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	raw.Clusters["p1"].CertificateAuthorityData = []byte("another CA")
	config := &rest.Config{Host: raw.Clusters["p0"].Server, TLSClientConfig: rest.TLSClientConfig{CAData: raw.Clusters["p0"].CertificateAuthorityData}}
	if got := alternatives(*raw, config); len(got) != 1 {
		t.Errorf("alternatives %v", got)
	}
	config.Host = "https://chosen.by.hand:6443"
	if got := alternatives(*raw, config); len(got) != 1 || got[0] != config.Host {
		t.Errorf("--server was not respected: %v", got)
	}
}

func TestNoKubeconfigForKubectl(t *testing.T) {
	command := exec.CommandContext(t.Context(), os.Args[0], "get", "--raw", "/readyz")
	command.Env = []string{"SHOAL_TEST_AS_PEER=1", "SHOAL_DATA_DIR=" + t.TempDir(), "HOME=" + t.TempDir()}
	out, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(out), errNoKubeconfig.Error()) {
		t.Errorf("%v: %s", err, out)
	}
}

// Errors of the server are printed, and end the process, as kubectl does it.
func TestServerErrorsAreKubectls(t *testing.T) {
	startPeers(t, 1, http.HandlerFunc(readyz))
	for _, c := range []struct{ line, want string }{
		{"get --raw /api/v1/nope", `Error from server (NotFound): pods "nope" not found`},
		{"get pods --kubeconfig /nowhere", "/nowhere"},
		{"get --no-such-flag", "unknown flag: --no-such-flag"},
	} {
		command := exec.CommandContext(t.Context(), os.Args[0], strings.Fields(c.line)...)
		command.Env = append(os.Environ(), "SHOAL_TEST_AS_PEER=1")
		out, err := command.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("peer %s: %v, %q, want %q", c.line, err, out, c.want)
		}
	}
}
