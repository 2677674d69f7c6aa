package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// DefaultDataDir is the data folder of a host's one peer.
const DefaultDataDir = "/var/lib/shoal"

// The layout of <data>/identity. Every file is 0600, the folder 0700. The
// folder appears whole, by one rename; later only peer.crt is replaced, by a
// rename too, so a crash at any moment leaves a folder that loads.
const (
	folderName  = "identity"
	pendingName = "identity.new" // a peer's own keys, before it belongs to a cluster

	manifestFile       = "identity.json"
	caFile             = "ca.crt"
	caKeyFile          = "ca.key"
	serviceAccountFile = "serviceaccount.key"
	gossipFile         = "gossip.key"
	encryptionFile     = "encryption.key"
	peerKeyFile        = "peer.key"
	peerCertFile       = "peer.crt"
	wireGuardFile      = "wireguard.key"
)

// formatVersion is the layout this program writes and the newest it reads.
const formatVersion = 1

// manifest names what the folder holds. Sums are the SHA-256 of every file
// that never changes, to tell a damaged disk from a bad certificate.
type manifest struct {
	Format      int               `json:"format"`
	ClusterID   string            `json:"clusterID"`
	PeerID      string            `json:"peerID"`
	Name        string            `json:"name"`
	Founder     bool              `json:"founder,omitempty"`
	ClusterCIDR netip.Prefix      `json:"clusterCIDR"`
	ServiceCIDR netip.Prefix      `json:"serviceCIDR"`
	Sums        map[string]string `json:"sha256"`
}

// writeFile writes name in dir so that either the old or the new content is
// there after a crash, never a part.
func writeFile(dir, name string, content []byte) (err error) {
	temporary, err := os.CreateTemp(dir, "."+name+".*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(dir, name), err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temporary.Name())
			err = fmt.Errorf("write %s: %w", filepath.Join(dir, name), err)
		}
	}()
	if _, err = temporary.Write(content); err != nil {
		_ = temporary.Close()
		return err
	}
	if err = temporary.Sync(); err != nil {
		_ = temporary.Close()
		return err
	}
	if err = temporary.Close(); err != nil {
		return err
	}
	if err = os.Rename(temporary.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncFolder(dir)
}

// syncFolder makes renames inside dir durable.
func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// folder reads files of one identity folder and refuses those others can read.
type folder struct {
	path string
	sums map[string]string
}

// openFolder checks the folder itself. A missing one is fs.ErrNotExist.
func openFolder(path string) (folder, error) {
	info, err := os.Stat(path)
	if err != nil {
		return folder{}, err
	}
	if !info.IsDir() {
		return folder{}, fmt.Errorf("%s is not a folder", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return folder{}, fmt.Errorf("%s can be entered by other users (mode %04o): run chmod 700 %s", path, info.Mode().Perm(), path)
	}
	return folder{path: path, sums: map[string]string{}}, nil
}

func (f folder) read(name string) ([]byte, error) {
	path := filepath.Join(f.path, name)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: restore it from a backup, or empty the data folder and join anew", path)
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a plain file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by other users (mode %04o): run chmod 600 %s", path, info.Mode().Perm(), path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f.sums[name] = sumOf(content)
	return content, nil
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// damaged says which file cannot be used, and what to do about it.
func (f folder) damaged(name string, err error) error {
	return fmt.Errorf("%s is damaged (%w): restore it from a backup, or empty the data folder and join anew", filepath.Join(f.path, name), err)
}

func (f folder) manifest() (manifest, error) {
	var m manifest
	content, err := f.read(manifestFile)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return m, f.damaged(manifestFile, err)
	}
	switch {
	case m.Format > formatVersion:
		return m, fmt.Errorf("%s was written by a newer version (format %d, this program knows %d): run that version or a later one", f.path, m.Format, formatVersion)
	case m.Format < 1:
		return m, f.damaged(manifestFile, errors.New("it has no format number"))
	}
	return m, nil
}

// cluster reads the shared secrets and checks them against the manifest.
func (f folder) cluster(m manifest) (*Cluster, error) {
	texts := map[string]string{}
	for _, name := range []string{caFile, caKeyFile, serviceAccountFile, gossipFile, encryptionFile} {
		content, err := f.read(name)
		if err != nil {
			return nil, err
		}
		if m.Sums[name] != f.sums[name] {
			return nil, f.damaged(name, errors.New("its SHA-256 is not the recorded one"))
		}
		texts[name] = string(content)
	}
	gossip, err := base64.StdEncoding.DecodeString(strings.TrimSpace(texts[gossipFile]))
	if err != nil {
		return nil, f.damaged(gossipFile, err)
	}
	encryption, err := base64.StdEncoding.DecodeString(strings.TrimSpace(texts[encryptionFile]))
	if err != nil {
		return nil, f.damaged(encryptionFile, err)
	}
	cluster, err := bundle{
		CA: texts[caFile], CAKey: texts[caKeyFile], ServiceAccountKey: texts[serviceAccountFile],
		GossipKey: gossip, EncryptionKey: encryption, ClusterCIDR: m.ClusterCIDR, ServiceCIDR: m.ServiceCIDR,
	}.cluster()
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restore it from a backup, or empty the data folder and join anew", f.path, err)
	}
	if cluster.ID != m.ClusterID {
		return nil, fmt.Errorf("%s mixes two clusters: it was made for %s, but its CA is that of %s; restore it from a backup", f.path, m.ClusterID, cluster.ID)
	}
	return cluster, nil
}

// writeCluster writes the shared secrets and returns their sums.
func writeCluster(dir string, c *Cluster) (map[string]string, error) {
	caKey, err := encodeKey(c.caKey)
	if err != nil {
		return nil, err
	}
	serviceAccountKey, err := encodeKey(c.ServiceAccountKey)
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for name, content := range map[string][]byte{
		caFile: c.CAPEM(), caKeyFile: caKey, serviceAccountFile: serviceAccountKey,
		gossipFile:     []byte(base64.StdEncoding.EncodeToString(c.GossipKey) + "\n"),
		encryptionFile: []byte(base64.StdEncoding.EncodeToString(c.EncryptionKey) + "\n"),
	} {
		if err := writeFile(dir, name, content); err != nil {
			return nil, err
		}
		sums[name] = sumOf(content)
	}
	return sums, nil
}
