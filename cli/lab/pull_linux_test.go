package lab

import (
	"bytes"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
)

// serveRegistry runs a registry inside a peer's namespace that knows one user.
func serveRegistry(t *testing.T, peer *Peer, user, password string) string {
	t.Helper()
	var listener net.Listener
	if err := peer.host.do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	images := registry.New(registry.Logger(log.New(new(bytes.Buffer), "", 0)))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="e2e"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`, http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return listener.Addr().String()
}

func imagePulled(t *testing.T, c *cluster) {
	ns := c.namespace(t, "pull")
	peer := c.Peers[0]
	address := serveRegistry(t, peer, "captain", "ahoy")
	reference := address + "/e2e/pulled:1"
	tag, err := name.NewTag(reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(tools.image, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image, remote.WithAuth(&authn.Basic{Username: "captain", Password: "ahoy"}),
		remote.WithTransport(&http.Transport{DialContext: peer.host.dial})); err != nil {
		t.Fatal(err)
	}
	pod := "{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: %q}], imagePullSecrets: %s}}"
	c.apply(t, ns, fmt.Sprintf(pod, "stranger", reference, "[]"))
	c.eventSays(t, ns, "stranger", "Failed", "Failed to pull image", reference, "the registry refuses access")
	c.kubectl(t, "-n", ns, "create", "secret", "docker-registry", "harbour", "--docker-server", address, "--docker-username", "captain", "--docker-password", "ahoy")
	c.apply(t, ns, fmt.Sprintf(pod, "known", reference, "[{name: harbour}]"))
	c.podIs(t, ns, "known", "ready", ready)
	c.eventSays(t, ns, "known", "Pulled", "Successfully pulled image", reference)
}

func imageMissing(t *testing.T, c *cluster) {
	ns := c.namespace(t, "missing")
	address := serveRegistry(t, c.Peers[0], "captain", "ahoy")
	c.kubectl(t, "-n", ns, "create", "secret", "docker-registry", "harbour", "--docker-server", address, "--docker-username", "captain", "--docker-password", "ahoy")
	for podName, image := range map[string]string{"nosuch": address + "/no/such:1", "deaf": "127.0.0.1:1/no/body:1", "never": "shoal.local/never:1"} {
		policy := map[bool]string{true: "Never", false: "Always"}[podName == "never"]
		c.apply(t, ns, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {containers: [{name: main, image: %q, imagePullPolicy: %s}], imagePullSecrets: [{name: harbour}]}}", podName, image, policy))
	}
	waitingFor := func(reasons ...string) func(pod *corev1.Pod) bool {
		return func(pod *corev1.Pod) bool {
			return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Waiting != nil &&
				strings.Contains(strings.Join(reasons, " "), pod.Status.ContainerStatuses[0].State.Waiting.Reason)
		}
	}
	c.podIs(t, ns, "nosuch", "waiting for its image", waitingFor("ErrImagePull", "ImagePullBackOff"))
	c.eventSays(t, ns, "nosuch", "Failed", "Failed to pull image", address+"/no/such:1", "not found")
	c.eventSays(t, ns, "nosuch", "Failed", "ErrImagePull")
	c.eventSays(t, ns, "nosuch", "BackOff", "Back-off pulling image")
	c.eventSays(t, ns, "deaf", "Failed", "Failed to pull image", "connection refused")
	c.podIs(t, ns, "never", "waiting for its image", waitingFor("ErrImageNeverPull"))
	wants(t, c.kubectl(t, "-n", ns, "get", "pods"), "ImagePull")
}

func imagesListed(t *testing.T, c *cluster) {
	peer := c.Peers[0]
	out, err := peer.Command(t.Context(), "image", "list")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, out, "IMAGE", testImage, "sha256:")
	if out, err = peer.Command(t.Context(), "image", "import", tools.image); err != nil {
		t.Fatal(err)
	}
	wants(t, out, testImage)
	notes := t.TempDir() + "/notes"
	if err := os.WriteFile(notes, []byte("this is no tarball"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := peer.Command(t.Context(), "image", "import", notes); err == nil {
		t.Errorf("a text file was imported: %s", out)
	} else if strings.Count(strings.TrimSpace(err.Error()), "\n") > 1 {
		t.Errorf("not one sentence: %v", err)
	}
}
