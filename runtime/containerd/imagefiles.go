//go:build linux

package containerd

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	continuityfs "github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
)

// imageFiles are what a container's spec needs of its image's files.
type imageFiles struct {
	passwd, group []byte // /etc/passwd and /etc/group; nil where there is none
	code32        bool   // there may be programs of the machine's 32-bit architecture
}

// loaders of 32-bit programs that share libraries. A static one is only known by
// being the image's entrypoint.
var loaders32 = []string{"lib/ld-linux.so.2", "lib/ld-musl-i386.so.1", "lib/ld-linux-armhf.so.3", "lib/ld-musl-armhf.so.1"}

// readImageFiles mounts a root file system for a moment. An image's files never
// change, so this is done once for each image.
func readImageFiles(ctx context.Context, mounts []mount.Mount, entrypoint string) (imageFiles, error) {
	var files imageFiles
	err := mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		var err error
		if files.passwd, err = readInside(root, "etc/passwd"); err != nil {
			return err
		}
		if files.group, err = readInside(root, "etc/group"); err != nil {
			return err
		}
		for _, loader := range loaders32 {
			if path, err := continuityfs.RootPath(root, loader); err == nil && exists(path) {
				files.code32 = true
			}
		}
		if path, err := continuityfs.RootPath(root, entrypoint); err == nil && elf32(path) {
			files.code32 = true
		}
		return nil
	})
	return files, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// elf32 reports whether the file is a 32-bit program.
func elf32(path string) bool {
	file, err := elf.Open(path)
	if err != nil {
		return false // a script, or nothing
	}
	defer file.Close()
	return file.Class == elf.ELFCLASS32
}

// readInside reads a file below root and follows no link out of it. nil when
// there is none.
func readInside(root, name string) ([]byte, error) {
	path, err := continuityfs.RootPath(root, name)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// specUser sets user and groups by the rules of the kubelet: the container's
// choice, else the image's; the primary group from /etc/passwd; the groups that
// /etc/group gives the user, unless that is forbidden.
func specUser(_ context.Context, s *oci.Spec, in specInput) error {
	security := in.spec.Security
	name := in.image.User
	if security.User != nil {
		name = strconv.FormatInt(*security.User, 10)
	}
	found, err := user.GetExecUser(name, nil, bytes.NewReader(in.files.passwd), bytes.NewReader(in.files.group))
	if err != nil {
		return fmt.Errorf("user %q: %w", name, err)
	}
	s.Process.User.UID, s.Process.User.GID = uint32(found.Uid), uint32(found.Gid)
	if security.Group != nil {
		s.Process.User.GID = uint32(*security.Group)
	}
	groups := []uint32{s.Process.User.GID}
	if !security.StrictSupplemental {
		for _, gid := range found.Sgids {
			groups = append(groups, uint32(gid))
		}
	}
	for _, gid := range security.SupplementalGroups {
		groups = append(groups, uint32(gid))
	}
	slices.Sort(groups)
	s.Process.User.AdditionalGids = slices.Compact(groups)
	return nil
}
