package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"

	"shoal/peer/admin"
	"shoal/peer/identity"
)

// startSocket serves calls on a data folder's socket.
func startSocket(t *testing.T, dataDir string, calls admin.Calls) {
	t.Helper()
	listener, err := admin.Listen(filepath.Join(dataDir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- admin.Run(ctx, listener, calls, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestStatus(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SHOAL_DATA_DIR", dir)
	if _, err := invoke(t, Parts{}, "status"); !errors.Is(err, admin.ErrNotRunning) {
		t.Errorf("without a peer: %v", err)
	}
	status := admin.Status{
		ClusterID: "c", PeerID: "a1", Name: "alpha", Ready: true, Started: time.Now(), Address: "10.0.0.1:7443",
		Peers: []admin.PeerStatus{{PeerID: "a1", Name: "alpha", State: "alive"}, {PeerID: "b2", Name: "beta", State: "suspect"}},
		Shards: []admin.ShardStatus{{
			Shard: 3, Leader: "b2", Voters: []string{"b2", "a1", "gone"}, Local: true, Quarantined: map[string]string{"b2": "it broke"},
		}},
	}
	startSocket(t, dir, admin.Calls{Status: func(context.Context) (*admin.Status, error) { return &status, nil }})
	out, err := invoke(t, Parts{}, "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"alpha (a1) of cluster c: ready", "suspect", "alpha,beta,gone", "quarantined on beta: it broke"} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
	status.Problems = []string{"shard 3 has no leader"}
	if _, err := invoke(t, Parts{}, "status"); err == nil || err.Error() != "shard 3 has no leader" {
		t.Errorf("a problem must fail the command: %v", err)
	}
	if out, err := invoke(t, Parts{}, "status", "-o", "json"); err != nil || !json.Valid([]byte(out)) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestImageImportAndLeave(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SHOAL_DATA_DIR", dir)
	var got string
	startSocket(t, dir, admin.Calls{
		ImportImage: func(_ context.Context, tarball io.Reader, progress func(string)) ([]admin.Image, error) {
			progress("reading")
			text, err := io.ReadAll(tarball)
			if got = string(text); got == "broken" {
				return nil, errors.New("this is no image tarball")
			}
			return []admin.Image{{Name: "demo:1", Digest: "sha256:00"}}, err
		},
		Leave: func(_ context.Context, progress func(string)) error {
			progress("draining")
			progress("gone")
			return nil
		},
	})
	tarball := filepath.Join(dir, "demo.tar")
	write(t, tarball, "the tarball")
	out, err := invoke(t, Parts{}, "image", "import", tarball)
	if err != nil || got != "the tarball" || !strings.Contains(out, "demo:1 sha256:00") || !strings.Contains(out, "reading") {
		t.Errorf("import: %v, got %q, said %q", err, got, out)
	}
	write(t, tarball, "broken")
	if _, err := invoke(t, Parts{}, "image", "import", tarball); err == nil || !strings.Contains(err.Error(), "this is no image tarball") {
		t.Errorf("a failed import: %v", err)
	}
	if _, err := invoke(t, Parts{}, "image", "list"); err == nil || !strings.Contains(err.Error(), "not available") {
		t.Errorf("a call nobody serves: %v", err)
	}
	if out, err := invoke(t, Parts{}, "leave"); err != nil || out != "draining\ngone\n" {
		t.Errorf("leave: %v, %q", err, out)
	}
}

func TestKubeconfigListsAllPeers(t *testing.T) {
	peers := startPeers(t, 1, http.HandlerFunc(readyz))
	startSocket(t, peers.dataDir, admin.Calls{Status: func(context.Context) (*admin.Status, error) {
		return &admin.Status{Peers: []admin.PeerStatus{{Name: "a-first", Address: "10.0.0.2:7443"}, {Name: "p0", Address: "10.0.0.1:7443"}}}, nil
	}})
	out, err := invoke(t, Parts{}, "kubeconfig", "--all")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.Load([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Clusters) != 2 || config.CurrentContext != "p0" || config.Clusters["a-first"].Server != "https://10.0.0.2:7443" {
		t.Errorf("clusters %v, current %s", config.Clusters, config.CurrentContext)
	}
	file := filepath.Join(t.TempDir(), "k")
	if _, err := invoke(t, Parts{}, "kubeconfig", "--no-all", "-o", file); err != nil {
		t.Fatal(err)
	}
	one, err := clientcmd.LoadFromFile(file)
	if err != nil || len(one.Clusters) != 1 {
		t.Errorf("%v, %v", err, one)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// secretStore is as much of the API as tokens need.
type secretStore struct {
	mu      sync.Mutex
	secrets map[string]corev1.Secret
}

func (s *secretStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/kube-system/secrets"), "/")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost:
		var secret corev1.Secret
		if err := decodeBody(r, &secret); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.secrets[secret.Name] = secret
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(secret)
	case r.Method == http.MethodGet:
		var list corev1.SecretList
		list.APIVersion, list.Kind = "v1", "SecretList"
		for _, secret := range s.secrets {
			list.Items = append(list.Items, secret)
		}
		_ = json.NewEncoder(w).Encode(list)
	case s.secrets[name].Name == "":
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	default:
		delete(s.secrets, name)
		_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Success"}`)
	}
}

func decodeBody(r *http.Request, secret *corev1.Secret) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	_, _, err = scheme.Codecs.UniversalDeserializer().Decode(body, nil, secret)
	return err
}

func TestTokens(t *testing.T) {
	store := &secretStore{secrets: map[string]corev1.Secret{}}
	peers := startPeers(t, 1, store)
	out, err := invoke(t, Parts{}, "token", "create", "--quiet", "--ttl", "1h", "--description", "for web-2")
	if err != nil {
		t.Fatal(err)
	}
	token, err := identity.ParseToken(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if err := peers.self.CheckToken(token); err != nil {
		t.Errorf("the token does not pin this cluster: %v", err)
	}
	secret := store.secrets[identity.SecretName(token.ID)]
	record, err := identity.TokenFromSecret(&secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := record.Check(token.ID, token.Secret, time.Now()); err != nil {
		t.Errorf("the cluster would refuse it: %v", err)
	}
	if err := record.Check(token.ID, token.Secret, time.Now().Add(61*time.Minute)); err == nil {
		t.Error("it does not expire")
	}
	out, err = invoke(t, Parts{}, "token", "list")
	if err != nil || !strings.Contains(out, token.ID) || !strings.Contains(out, "for web-2") || strings.Contains(out, token.Secret) {
		t.Errorf("list: %v\n%s", err, out)
	}
	if _, err := invoke(t, Parts{}, "token", "delete", token.String()); err != nil || len(store.secrets) != 0 {
		t.Errorf("delete: %v, left %v", err, store.secrets)
	}
	if _, err := invoke(t, Parts{}, "token", "delete", token.ID); err == nil || !strings.Contains(err.Error(), "there is no token") {
		t.Errorf("delete twice: %v", err)
	}
	if _, err := invoke(t, Parts{}, "token", "create", "--ttl", "1s"); err == nil {
		t.Error("a token of one second was made")
	}
	out, err = invoke(t, Parts{}, "token", "create")
	if err != nil || !strings.Contains(out, "peer join "+peers.servers[0].Listener.Addr().String()+" --token ") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestNoKubeconfig(t *testing.T) {
	t.Setenv("SHOAL_DATA_DIR", t.TempDir())
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	if _, err := invoke(t, Parts{}, "token", "list"); err == nil || !strings.Contains(err.Error(), "no kubeconfig was found") {
		t.Errorf("%v", err)
	}
}
