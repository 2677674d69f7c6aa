//go:build linux

package containerd

import (
	"bytes"
	"context"
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

// userFiles are an image's /etc/passwd and /etc/group; nil where it has none.
type userFiles struct{ passwd, group []byte }

// readUserFiles mounts a root file system for a moment. An image's files never
// change, so this is done once for each image.
func readUserFiles(ctx context.Context, mounts []mount.Mount) (userFiles, error) {
	var files userFiles
	err := mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		var err error
		if files.passwd, err = readInside(root, "etc/passwd"); err != nil {
			return err
		}
		files.group, err = readInside(root, "etc/group")
		return err
	})
	return files, err
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
