//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"shoal/runtime/pods"
)

// imageIndex is what this node has, in memory: a pod's start should not ask the
// disk what its image is.
type imageIndex struct {
	mu   sync.Mutex
	byID map[string]*imageInfo
}

// imageInfo is one image: everything that has the same config.
type imageInfo struct {
	ID      string
	config  ocispec.ImageConfig
	chainID string // of its layers: the parent of containers' snapshots
	size    int64

	mu      sync.Mutex
	targets map[string]digest.Digest // name → manifest or index; replaced, never changed
	files   *imageFiles              // nil until read
}

func (i *imageInfo) names() map[string]digest.Digest {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.targets
}

// setNames replaces the names by a changed copy, since readers hold the old.
func (i *imageInfo) setNames(change func(map[string]digest.Digest)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	names := maps.Clone(i.targets)
	change(names)
	i.targets = names
}

func (i *imageInfo) filesKnown() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.files != nil
}

func (i *imageInfo) knownFiles() imageFiles {
	i.mu.Lock()
	defer i.mu.Unlock()
	return *i.files
}

func (i *imageInfo) loadFiles(ctx context.Context, mounts []mount.Mount) error {
	entrypoint := ""
	if command := slices.Concat(i.config.Entrypoint, i.config.Cmd); len(command) > 0 {
		entrypoint = command[0]
	}
	files, err := readImageFiles(ctx, mounts, entrypoint)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.files = &files
	return nil
}

// name returns one of the image's names, always the same.
func (i *imageInfo) name() string {
	names := slices.Sorted(maps.Keys(i.names()))
	if len(names) == 0 {
		return i.ID
	}
	return names[0]
}

// public is the image as callers see it.
func (i *imageInfo) public() pods.Image {
	out := pods.Image{ID: i.ID, Size: i.size, User: i.config.User}
	for name, target := range i.names() {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			out.Names = append(out.Names, name) // imported under a name of its own kind
			continue
		}
		if _, digested := named.(reference.Digested); !digested {
			out.Names = append(out.Names, name)
		}
		out.Digests = append(out.Digests, named.Name()+"@"+target.String())
	}
	slices.Sort(out.Names)
	slices.Sort(out.Digests)
	out.Digests = slices.Compact(out.Digests)
	return out
}

func (x *imageIndex) bytes() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	var sum uint64
	for _, i := range x.byID {
		sum += uint64(i.size)
	}
	return sum
}

func (x *imageIndex) all() []*imageInfo {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := make([]*imageInfo, 0, len(x.byID))
	for _, i := range x.byID {
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b *imageInfo) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// add merges an image into the index and takes its name from any other.
func (x *imageIndex) add(i *imageInfo) *imageInfo {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byID == nil {
		x.byID = map[string]*imageInfo{}
	}
	for name := range i.targets {
		for id, other := range x.byID {
			if _, taken := other.names()[name]; taken && id != i.ID {
				other.setNames(func(names map[string]digest.Digest) { delete(names, name) })
			}
		}
	}
	have, ok := x.byID[i.ID]
	if !ok {
		x.byID[i.ID] = i
		return i
	}
	have.setNames(func(names map[string]digest.Digest) { maps.Copy(names, i.targets) })
	return have
}

func (x *imageIndex) remove(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.byID, id)
}

// lookup finds an image by ID ("sha256:…" or its bare hex) or by any reference.
func (x *imageIndex) lookup(ref string) (*imageInfo, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i, ok := x.byID[ref]; ok {
		return i, nil
	}
	if i, ok := x.byID["sha256:"+ref]; ok {
		return i, nil
	}
	if strings.HasPrefix(ref, "sha256:") {
		return nil, fmt.Errorf("%w: %s", pods.ErrImageNotFound, ref)
	}
	named, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	digested, byDigest := named.(reference.Digested)
	for _, i := range x.byID {
		names := i.names()
		if _, ok := names[named.String()]; ok {
			return i, nil
		}
		if _, ok := names[ref]; ok {
			return i, nil
		}
		if !byDigest {
			continue
		}
		for name, target := range names {
			other, err := reference.ParseNormalizedNamed(name)
			if err == nil && target == digested.Digest() && other.Name() == named.Name() {
				return i, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: %s", pods.ErrImageNotFound, ref)
}

// parseReference completes what users write: "nginx" is
// "docker.io/library/nginx:latest"; with a digest the tag is dropped.
func parseReference(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", pods.ErrImageInvalid, ref, err)
	}
	return named, nil
}

// loadImages fills the index from containerd. Images that are not whole are
// left out, and so pulled again when wanted.
func (e *Engine) loadImages(ctx context.Context) error {
	list, err := e.client.ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, image := range list {
		if _, err := e.indexImage(ctx, image); err != nil {
			if errdefs.IsUnavailable(err) || ctx.Err() != nil {
				return err
			}
			e.logger.Warn("image is not whole, ignoring it", "image", image.Name, "err", err)
		}
	}
	return nil
}

// indexImage reads an image and puts it into the index.
func (e *Engine) indexImage(ctx context.Context, image images.Image) (*imageInfo, error) {
	info, err := e.readImage(ctx, image)
	if err != nil {
		return nil, err
	}
	return e.images.add(info), nil
}

// readImage reads an image's manifest and config from the content store.
func (e *Engine) readImage(ctx context.Context, image images.Image) (*imageInfo, error) {
	store := e.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, image.Target, platforms.Default())
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	data, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	size := image.Target.Size + manifest.Config.Size
	for _, layer := range manifest.Layers {
		size += layer.Size
	}
	return &imageInfo{
		ID:      manifest.Config.Digest.String(),
		config:  config.Config,
		chainID: identity.ChainID(config.RootFS.DiffIDs).String(),
		size:    size,
		targets: map[string]digest.Digest{image.Name: image.Target.Digest},
	}, nil
}
