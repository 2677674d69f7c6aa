//go:build linux

package containerd_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"shoal/runtime/containerd"
	"shoal/runtime/pods"
)

// testRegistry is a registry on the loopback interface with the probe image at
// the reference it returns. With a password it asks for basic credentials.
func testRegistry(t *testing.T, password string) (ref string, requests *atomic.Int64) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	requests = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, given, _ := r.BasicAuth(); password != "" && given != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		requests.Add(1)
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	ref = strings.TrimPrefix(server.URL, "http://") + "/test/probe:v1"
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	options := []remote.Option{remote.WithAuth(&authn.Basic{Username: "me", Password: password})}
	if err := remote.Write(tag, probeImage(t), options...); err != nil {
		t.Fatal(err)
	}
	requests.Store(0)
	return ref, requests
}

func TestPull(t *testing.T) {
	h := newHost(t, nil)
	ref, requests := testRegistry(t, "")
	private, _ := testRegistry(t, "secret")

	t.Run("gives a runnable image", func(t *testing.T) {
		image, err := h.engine.Pull(t.Context(), ref, nil, func(pods.Progress) {})
		if err != nil {
			t.Fatal(err)
		}
		if len(image.Names) == 0 || len(image.Digests) == 0 || image.Size == 0 || !strings.HasPrefix(image.ID, "sha256:") {
			t.Errorf("image %+v", image)
		}
		for _, other := range append([]string{image.ID, image.ID[7:]}, image.Digests...) {
			if found, err := h.engine.Image(t.Context(), other); err != nil || found.ID != image.ID {
				t.Errorf("lookup of %s: %+v, %v", other, found, err)
			}
		}
		spec := h.spec(h.sandbox(nil), "exit", "5")
		spec.Image = ref
		if state, _ := h.finished(spec); state.ExitCode != 5 || state.ImageID != image.ID {
			t.Errorf("state %+v", state)
		}
	})
	t.Run("shares one transfer", func(t *testing.T) {
		if err := h.engine.RemoveImage(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		requests.Store(0)
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if _, err := h.engine.Pull(t.Context(), ref, nil, nil); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := requests.Load(); n > 10 {
			t.Errorf("%d requests for five pulls", n)
		}
	})
	t.Run("tries credentials in order", func(t *testing.T) {
		auth := []pods.Auth{{Username: "me", Password: "wrong"}, {Username: "me", Password: "secret"}}
		if _, err := h.engine.Pull(t.Context(), private, auth, nil); err != nil {
			t.Error(err)
		}
	})
	for name, test := range map[string]struct {
		ref  string
		auth []pods.Auth
		want error
		text string
	}{
		"without credentials":   {strings.Replace(private, ":v1", ":v2", 1), nil, pods.ErrImagePull, "refuses access"},
		"with wrong ones":       {private, []pods.Auth{{Username: "me", Password: "wrong"}}, pods.ErrImagePull, "refuses access"},
		"no such image":         {strings.Replace(ref, ":v1", ":none", 1), nil, pods.ErrImagePull, "no such image"},
		"no such repository":    {strings.Replace(ref, "/test/", "/none/", 1), nil, pods.ErrImagePull, "no such image"},
		"no registry there":     {"127.0.0.1:1/none:1", nil, pods.ErrImagePull, "connection refused"},
		"not a reference":       {"!!", nil, pods.ErrImageInvalid, "!!"},
		"a name in upper case ": {"Nginx", nil, pods.ErrImageInvalid, "lowercase"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.engine.Pull(t.Context(), test.ref, test.auth, nil)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v, want %v with %q", err, test.want, test.text)
			}
		})
	}
	t.Run("ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.engine.Pull(ctx, ref, nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestPullFromAPeer(t *testing.T) {
	source := newHost(t, nil)
	ref, requests := testRegistry(t, "")
	if _, err := source.engine.Pull(t.Context(), ref, nil, nil); err != nil {
		t.Fatal(err)
	}
	peer := httptest.NewServer(source.engine.RegistryHandler())
	t.Cleanup(peer.Close)
	requests.Store(0)
	target := newHost(t, func(c *containerd.Config) {
		c.Mirrors = func(context.Context, string) []containerd.Mirror {
			return []containerd.Mirror{{URL: peer.URL, Client: peer.Client()}}
		}
	})
	image, err := target.engine.Pull(t.Context(), ref, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests reached the registry", n)
	}
	// What the peer does not have comes from the registry.
	other := strings.Replace(ref, ":v1", "@"+strings.SplitN(image.Digests[0], "@", 2)[1], 1)
	if _, err := target.engine.Pull(t.Context(), other, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestImport(t *testing.T) {
	h := newHost(t, nil) // imports the plain tarball
	image, err := h.engine.Image(t.Context(), imageName)
	if err != nil || image.Size == 0 {
		t.Fatalf("%+v, %v", image, err)
	}
	if err := h.engine.RemoveImage(t.Context(), imageName); err != nil {
		t.Fatal(err)
	}
	if _, err := h.engine.Image(t.Context(), imageName); !errors.Is(err, pods.ErrImageNotFound) {
		t.Errorf("after removal: %v", err)
	}
	if err := h.engine.RemoveImage(t.Context(), imageName); err != nil {
		t.Errorf("second removal: %v", err)
	}
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write(probeTarball(t)); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	list, err := h.engine.Import(t.Context(), &packed)
	if err != nil || len(list) != 1 || list[0].ID != image.ID {
		t.Fatalf("import: %+v, %v", list, err)
	}
	h.reopen()
	if all, err := h.engine.ListImages(t.Context()); err != nil || len(all) != 1 || all[0].Names[0] != imageName {
		t.Errorf("list after reopening: %+v, %v", all, err)
	}
	if _, err := h.engine.Import(t.Context(), strings.NewReader("no tarball at all")); !errors.Is(err, pods.ErrImageInvalid) {
		t.Errorf("garbage: %v", err)
	}
	if info, err := h.engine.Info(t.Context()); err != nil || info.Version == "" || info.ImageRoot == "" || info.ImageBytes == 0 {
		t.Errorf("info %+v, %v", info, err)
	}
}

func TestFullDisk(t *testing.T) {
	h := emptyHost(t, nil)
	root := filepath.Join(h.dataDir, "containerd")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", root, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatal(err)
	}
	h.unmount = root
	h.startDaemon()
	h.open()
	_, err := h.engine.Import(t.Context(), bytes.NewReader(probeTarball(t)))
	if err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("import: %v", err)
	}
	ref, _ := testRegistry(t, "")
	_, err = h.engine.Pull(t.Context(), ref, nil, nil)
	if !errors.Is(err, pods.ErrImagePull) || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("pull: %v", err)
	}
	if list, err := h.engine.ListImages(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("half an image is listed: %+v, %v", list, err)
	}
}
