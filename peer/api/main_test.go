package api_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"shoal/internal/polling"
	"shoal/peer/api"
	"shoal/peer/api/apitest"
)

// shared is the one server of this package's tests; each test works in namespaces of its own.
var (
	shared *apitest.Cluster
	admin  kubernetes.Interface
)

func TestMain(m *testing.M) {
	apitest.ActAsKubectl()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "shoal-api-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	shared, err = apitest.Start(dir, func(c *api.Config) { c.KubeletDial, c.NodeLeases = dialFakeKubelet, fakeLeases })
	if err != nil {
		return 0, err
	}
	defer func() {
		if stopErr := shared.Stop(); err == nil {
			err = stopErr
		}
	}()
	config, err := shared.Remote("admin", "system:masters")
	if err != nil {
		return 0, err
	}
	if admin, err = kubernetes.NewForConfig(config); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// kubectl runs kubectl and fails the test if it fails.
func kubectl(t *testing.T, stdin string, arguments ...string) string {
	t.Helper()
	out, err := shared.Kubectl(stdin, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kubectlFails runs kubectl, which must fail with each text in its message.
func kubectlFails(t *testing.T, stdin string, texts []string, arguments ...string) {
	t.Helper()
	out, err := shared.Kubectl(stdin, arguments...)
	if err == nil {
		t.Fatalf("kubectl %s succeeded: %s", strings.Join(arguments, " "), out)
	}
	wantTexts(t, err.Error(), texts...)
}

func wantTexts(t *testing.T, out string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("no %q in:\n%s", text, out)
		}
	}
}

// eventually polls until check returns nil.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	polling.Until(t, 20*time.Millisecond, 10*time.Second, "it becomes so", func(context.Context) error { return check() })
}

// must passes a value on and fails the test on an error.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
