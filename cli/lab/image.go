package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"shoal/examples"
)

// buildWebImage compiles the demo's server and writes a docker-archive tarball of an image that holds nothing else.
func buildWebImage(ctx context.Context, dir string) (string, error) {
	source := filepath.Join(dir, "web.go")
	if err := os.WriteFile(source, examples.WebSource, 0o600); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "web")
	compile := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, source)
	compile.Dir = dir
	compile.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := compile.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling the demo's server: %w: %s", err, out)
	}
	image, err := webImage(binary)
	if err != nil {
		return "", fmt.Errorf("making the demo's image: %w", err)
	}
	tag, err := name.NewTag(examples.WebImage)
	if err != nil {
		return "", err
	}
	archive := filepath.Join(dir, "web.tar")
	return archive, tarball.WriteToFile(archive, tag, image)
}

func webImage(binary string) (v1.Image, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	if err := archive.WriteHeader(&tar.Header{Name: "web", Mode: 0o755, Size: int64(len(content))}); err != nil {
		return nil, err
	}
	if _, err := archive.Write(content); err != nil {
		return nil, err
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return imageOf(files.Bytes(), v1.Config{Entrypoint: []string{"/web"}, User: "65532:65532"})
}

// imageOf is an image of one layer, a tar archive, for this machine's processor.
func imageOf(archive []byte, how v1.Config) (v1.Image, error) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive)), nil
	})
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = how
	return mutate.ConfigFile(image, config)
}
