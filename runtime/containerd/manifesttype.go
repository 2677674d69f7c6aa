//go:build linux

package containerd

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds a manifest's size, bytes (that of the distribution spec).
const maxManifest = 4 << 20

// manifestType returns the media type that a manifest or index carries in itself.
func manifestType(blob content.ReaderAt) (string, error) {
	if blob.Size() > maxManifest {
		return "", fmt.Errorf("manifest of %d bytes is too large", blob.Size())
	}
	data, err := io.ReadAll(content.NewReader(blob))
	if err != nil {
		return "", err
	}
	var fields struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(data, &fields); err != nil {
		return "", fmt.Errorf("not a manifest: %w", err)
	}
	switch {
	case fields.MediaType != "":
		return fields.MediaType, nil
	case fields.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	default:
		return ocispec.MediaTypeImageManifest, nil
	}
}
