package lab

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// testImage holds a static busybox and e2e. By default it pauses.
const testImage = "shoal.local/e2e:1"

// writeTestImage puts the image together from this host's static busybox.
func writeTestImage(archive, e2e string) error {
	image, err := newTestImage(e2e)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(testImage)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(archive, tag, image)
}

func newTestImage(e2e string) (v1.Image, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox is needed inside the tests' containers: apt-get install busybox-static (hack/setup.sh does)")
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	for _, dir := range []string{"bin/", "etc/", "tmp/", "root/"} {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	for path, source := range map[string]string{"bin/busybox": busybox, "bin/e2e": e2e} {
		content, err := os.ReadFile(source)
		if err != nil {
			return nil, err
		}
		if err := archive.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := archive.Write(content); err != nil {
			return nil, err
		}
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet == "busybox" {
			continue
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return imageOf(files.Bytes(), v1.Config{Entrypoint: []string{"/bin/e2e"}, Cmd: []string{"pause"}, Env: []string{"PATH=/bin"}})
}
