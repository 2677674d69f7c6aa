package podstest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"shoal/runtime/pods"
)

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func imageOf(ref string) pods.Image {
	return pods.Image{ID: "sha256:" + digest(ref), Names: []string{ref}, Digests: []string{ref + "@sha256:" + digest("manifest "+ref)}, Size: 1 << 20}
}

// Image implements pods.Images.
func (e *Engine) Image(ctx context.Context, ref string) (pods.Image, error) {
	if err := e.enter(ctx, "image "+ref); err != nil {
		return pods.Image{}, err
	}
	if strings.ToLower(ref) != ref || ref == "" {
		return pods.Image{}, fmt.Errorf("%q: %w", ref, pods.ErrImageInvalid)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	image, have := e.images[ref]
	if !have {
		return pods.Image{}, fmt.Errorf("%q: %w", ref, pods.ErrImageNotFound)
	}
	return image, nil
}

// Pull implements pods.Images.
func (e *Engine) Pull(ctx context.Context, ref string, _ []pods.Auth, _ func(pods.Progress)) (pods.Image, error) {
	if err := e.enter(ctx, "pull "+ref); err != nil {
		return pods.Image{}, err
	}
	if e.PullErr != nil {
		if err := e.PullErr(ref); err != nil {
			return pods.Image{}, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[ref] = imageOf(ref)
	return e.images[ref], nil
}

// Import implements pods.Images: the tarball's text is the reference.
func (e *Engine) Import(ctx context.Context, tarball io.Reader) ([]pods.Image, error) {
	if err := e.enter(ctx, "import"); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(tarball)
	if err != nil {
		return nil, fmt.Errorf("read tarball: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[string(text)] = imageOf(string(text))
	return []pods.Image{e.images[string(text)]}, nil
}

// ListImages implements pods.Images.
func (e *Engine) ListImages(ctx context.Context) ([]pods.Image, error) {
	if err := e.enter(ctx, "images"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []pods.Image
	for _, ref := range slices.Sorted(maps.Keys(e.images)) {
		out = append(out, e.images[ref])
	}
	return out, nil
}

// RemoveImage implements pods.Images.
func (e *Engine) RemoveImage(ctx context.Context, ref string) error {
	if err := e.enter(ctx, "remove-image "+ref); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.images, ref)
	return nil
}
