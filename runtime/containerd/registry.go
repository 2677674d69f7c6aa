//go:build linux

package containerd

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"shoal/runtime/pods"
)

// RegistryHandler serves this node's images to other peers by the read-only
// part of the OCI distribution protocol:
//
//	GET|HEAD /v2/, /v2/<name>/manifests/<tag or digest>, /v2/<name>/blobs/<digest>
//
// A peer asks for another registry's image by the query parameter ns, as
// containerd's mirrors do. It authenticates nobody: the listener must.
// Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
func (e *Engine) RegistryHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /v2/", func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/v2/")
		if name, ref, ok := cutLast(path, "/manifests/"); ok {
			e.serveManifest(w, r, name, ref)
			return
		}
		if _, ref, ok := cutLast(path, "/blobs/"); ok {
			e.serveBlob(w, r, ref, "application/octet-stream")
			return
		}
		http.NotFound(w, r)
	})
	return mux
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}

func (e *Engine) serveManifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	if _, err := digest.Parse(ref); err == nil {
		e.serveBlob(w, r, ref, "")
		return
	}
	registry := r.URL.Query().Get("ns")
	if registry == "" {
		registry = "docker.io"
	}
	found, err := e.images.lookup(registry + "/" + name + ":" + ref)
	if errors.Is(err, pods.ErrImageNotFound) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	target := found.names()[registry+"/"+name+":"+ref]
	if target == "" {
		http.NotFound(w, r)
		return
	}
	e.serveBlob(w, r, target.String(), "")
}

// serveBlob sends one blob; without a media type it is a manifest, whose own is read.
func (e *Engine) serveBlob(w http.ResponseWriter, r *http.Request, ref, mediaType string) {
	dgst, err := digest.Parse(ref)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx := e.in(r.Context())
	blob, err := e.client.ContentStore().ReaderAt(ctx, ocispec.Descriptor{Digest: dgst})
	if errdefs.IsNotFound(err) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer blob.Close()
	if mediaType == "" {
		if mediaType, err = manifestType(blob); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", dgst.String())
	w.Header().Set("Content-Length", strconv.FormatInt(blob.Size(), 10))
	if r.Method == http.MethodHead {
		return
	}
	// An interrupted transfer is seen by the other side, which checks the digest.
	_, _ = io.Copy(w, content.NewReader(blob))
}
