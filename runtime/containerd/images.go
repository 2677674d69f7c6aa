//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"shoal/runtime/pods"
)

// importPrefix names images of a tarball that have no name.
const importPrefix = "import"

// Image implements pods.Images.
func (e *Engine) Image(_ context.Context, ref string) (pods.Image, error) {
	found, err := e.images.lookup(ref)
	if err != nil {
		return pods.Image{}, err
	}
	return found.public(), nil
}

// ListImages implements pods.Images.
func (e *Engine) ListImages(context.Context) ([]pods.Image, error) {
	var list []pods.Image
	for _, i := range e.images.all() {
		list = append(list, i.public())
	}
	return list, nil
}

// imageFor finds the image of a container.
func (e *Engine) imageFor(_ context.Context, spec pods.ContainerSpec) (*imageInfo, error) {
	if spec.ImageID != "" {
		return e.images.lookup(spec.ImageID)
	}
	return e.images.lookup(spec.Image)
}

// Pull implements pods.Images.
func (e *Engine) Pull(ctx context.Context, ref string, auth []pods.Auth, progress func(pods.Progress)) (pods.Image, error) {
	named, err := parseReference(ref)
	if err != nil {
		return pods.Image{}, err
	}
	for {
		result, err, _ := e.pulls.Do(named.String(), func() (any, error) {
			return e.pull(e.in(ctx), named.String(), auth, progress)
		})
		if err == nil {
			return result.(*imageInfo).public(), nil
		}
		// The one who pulled for both of us gave up; we did not.
		if ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			continue
		}
		return pods.Image{}, err
	}
}

// pull tries one credential after the other, then none. Only a refusal makes it
// try the next.
func (e *Engine) pull(ctx context.Context, name string, auth []pods.Auth, progress func(pods.Progress)) (*imageInfo, error) {
	var refused error
	for _, credential := range append(auth, pods.Auth{}) {
		image, err := e.pullAs(ctx, name, credential, progress)
		switch {
		case err == nil:
			return image, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errdefs.IsUnavailable(err):
			return nil, engineError(err)
		case !unauthorized(err):
			return nil, fmt.Errorf("%w: %s: %w", pods.ErrImagePull, name, explainPull(err))
		}
		if refused == nil {
			refused = err
		}
	}
	return nil, fmt.Errorf("%w: %s: %w", pods.ErrImagePull, name, explainPull(refused))
}

func (e *Engine) pullAs(ctx context.Context, name string, auth pods.Auth, progress func(pods.Progress)) (*imageInfo, error) {
	track := newTracker(e.client.ContentStore(), progress)
	stop := track.start(ctx)
	defer stop()
	image, err := e.client.Pull(ctx, name,
		client.WithPullUnpack,
		client.WithPullSnapshotter(e.config.Snapshotter),
		client.WithPlatformMatcher(platforms.Default()),
		client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: e.hosts(ctx, auth)})),
		client.WithImageHandlerWrapper(track.wrap),
	)
	if err != nil {
		return nil, err
	}
	return e.indexImage(ctx, images.Image{Name: image.Name(), Target: image.Target()})
}

// explainPull says in one sentence what users need to know.
func explainPull(err error) error {
	switch {
	case diskFull(err):
		return diskError(err)
	case unauthorized(err):
		return fmt.Errorf("the registry refuses access (wrong or missing credentials, or a private image): %w", err)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("no such image in the registry: %w", err)
	}
	return err
}

// unpack makes the snapshots of an image whose layers are here.
func (e *Engine) unpack(ctx context.Context, i *imageInfo) error {
	for name := range i.names() {
		image, err := e.client.ImageService().Get(ctx, name)
		if err != nil {
			return err
		}
		return client.NewImageWithPlatform(e.client, image, platforms.Default()).Unpack(ctx, e.config.Snapshotter)
	}
	return fmt.Errorf("%w: %s", pods.ErrImageNotFound, i.ID)
}

// Import implements pods.Images.
func (e *Engine) Import(ctx context.Context, tarball io.Reader) ([]pods.Image, error) {
	ctx = e.in(ctx)
	plain, err := compression.DecompressStream(tarball)
	if err != nil {
		return nil, fmt.Errorf("%w: not an image tarball: %w", pods.ErrImageInvalid, err)
	}
	defer plain.Close()
	stored, err := e.client.Import(ctx, plain,
		client.WithImportPlatform(platforms.Default()),
		client.WithDigestRef(archive.DigestTranslator(importPrefix)),
		client.WithSkipDigestRef(func(name string) bool { return name != "" }),
	)
	if err != nil {
		if diskFull(err) {
			return nil, diskError(err)
		}
		return nil, fmt.Errorf("%w: %w", pods.ErrImageInvalid, err)
	}
	var list []pods.Image
	for _, image := range stored {
		info, err := e.readImage(ctx, image)
		if err != nil {
			// An image for other platforms only.
			e.logger.Warn("imported image cannot run here", "image", image.Name, "err", err)
			continue
		}
		if err := client.NewImageWithPlatform(e.client, image, platforms.Default()).Unpack(ctx, e.config.Snapshotter); err != nil {
			// Half an image must not look like one.
			deleteErr := ignoreNotFound(e.client.ImageService().Delete(ctx, image.Name))
			return nil, errors.Join(fmt.Errorf("unpack %s: %w", image.Name, diskError(err)), deleteErr)
		}
		list = append(list, e.images.add(info).public())
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: the tarball holds no image for %s", pods.ErrImageInvalid, platforms.DefaultString())
	}
	return list, nil
}

// RemoveImage implements pods.Images.
func (e *Engine) RemoveImage(ctx context.Context, ref string) error {
	found, err := e.images.lookup(ref)
	if errors.Is(err, pods.ErrImageNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range found.names() {
		if err := ignoreNotFound(e.client.ImageService().Delete(e.in(ctx), name)); err != nil {
			return engineError(err)
		}
	}
	e.images.remove(found.ID)
	return nil
}

// tracker counts the bytes of one pull.
type tracker struct {
	store    contentStatus
	progress func(pods.Progress)

	mu    sync.Mutex
	blobs map[digest.Digest]ocispec.Descriptor
}

// progressEvery is the pause between two reports of progress.
const progressEvery = time.Second

func newTracker(store contentStatus, progress func(pods.Progress)) *tracker {
	return &tracker{store: store, progress: progress, blobs: map[digest.Digest]ocispec.Descriptor{}}
}

// wrap learns of every blob that belongs to the image before it is fetched.
func (t *tracker) wrap(inner images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, blob ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := inner.Handle(ctx, blob)
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, child := range append(children, blob) {
			t.blobs[child.Digest] = child
		}
		return children, err
	})
}

// start reports until the returned function is called.
func (t *tracker) start(ctx context.Context) (stop func()) {
	if t.progress == nil {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				t.progress(t.count(ctx))
			}
		}
	}()
	return func() { close(done); <-ended }
}

// count asks how much of each blob is here; what cannot be told counts as nothing.
func (t *tracker) count(ctx context.Context) pods.Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	var p pods.Progress
	for _, blob := range t.blobs {
		p.TotalBytes += blob.Size
		if info, err := t.store.Info(ctx, blob.Digest); err == nil {
			p.DoneBytes += info.Size
		} else if status, err := t.store.Status(ctx, remotes.MakeRefKey(ctx, blob)); err == nil {
			p.DoneBytes += status.Offset
		}
	}
	return p
}
