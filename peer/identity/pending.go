package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Pending is a peer that has its keys but no cluster yet. The keys are kept,
// so that a join repeated after a crash is the same peer and not a stranger
// that claims a name already taken.
type Pending struct {
	// ID is the ID the peer is going to have.
	ID        string
	WireGuard WireGuardKey
	dataDir   string
	key       *ecdsa.PrivateKey
}

// Prepare makes the peer's own keys in the data folder, or finds those of an
// earlier attempt. A folder that already has an identity is refused.
func Prepare(dataDir string) (*Pending, error) {
	if _, err := os.Stat(filepath.Join(dataDir, folderName)); err == nil {
		return nil, fmt.Errorf("%s already belongs to a cluster: start without addresses to resume, or choose another --data-dir", dataDir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	dir := filepath.Join(dataDir, pendingName)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	f, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	p := &Pending{dataDir: dataDir}
	if p.key, p.WireGuard, err = f.ownKeys(); err != nil {
		if p.key, p.WireGuard, err = writeOwnKeys(dir); err != nil {
			return nil, err
		}
	}
	p.ID, err = PeerID(p.key.Public())
	return p, err
}

func writeOwnKeys(dir string) (*ecdsa.PrivateKey, WireGuardKey, error) {
	key, err := newKey()
	if err != nil {
		return nil, WireGuardKey{}, err
	}
	wireGuard, err := NewWireGuardKey()
	if err != nil {
		return nil, WireGuardKey{}, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, WireGuardKey{}, err
	}
	err = errors.Join(
		writeFile(dir, peerKeyFile, text),
		writeFile(dir, wireGuardFile, []byte(wireGuard.String()+"\n")))
	return key, wireGuard, err
}

// Request is the certificate request (DER) of the peer's key.
func (p *Pending) Request() ([]byte, error) { return newRequest(p.key) }

// Found completes the peer as the first of a new cluster.
func (p *Pending) Found(now time.Time, cluster *Cluster, name string, addresses []netip.Addr) (*Peer, error) {
	leaf, err := cluster.signPeer(now, &p.key.PublicKey, p.ID, name, addresses)
	if err != nil {
		return nil, err
	}
	return p.complete(now, cluster, name, leaf, true)
}

// Complete makes the peer a member of a cluster that signed its certificate,
// in one step: before it the data folder has no identity, afterwards a whole one.
func (p *Pending) Complete(now time.Time, cluster *Cluster, name string, leaf *x509.Certificate) (*Peer, error) {
	return p.complete(now, cluster, name, leaf, false)
}

func (p *Pending) complete(now time.Time, cluster *Cluster, name string, leaf *x509.Certificate, founder bool) (*Peer, error) {
	peer, err := cluster.VerifyPeer(now, []*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, fmt.Errorf("the cluster's answer is unusable: %w", err)
	}
	if peer.PeerID != p.ID || peer.Name != name {
		return nil, fmt.Errorf("the cluster's answer is unusable: it holds a certificate for %s (%s), not for %s (%s)", peer.Name, peer.PeerID, name, p.ID)
	}
	dir := filepath.Join(p.dataDir, pendingName)
	m := manifest{
		Format: formatVersion, ClusterID: cluster.ID, PeerID: p.ID, Name: name, Founder: founder,
		ClusterCIDR: cluster.ClusterCIDR, ServiceCIDR: cluster.ServiceCIDR,
	}
	if m.Sums, err = writeCluster(dir, cluster); err != nil {
		return nil, err
	}
	f, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	if _, _, err := f.ownKeys(); err != nil {
		return nil, err
	}
	m.Sums[peerKeyFile], m.Sums[wireGuardFile] = f.sums[peerKeyFile], f.sums[wireGuardFile]
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(writeFile(dir, peerCertFile, encodeCertificate(leaf.Raw)), writeFile(dir, manifestFile, append(text, '\n'))); err != nil {
		return nil, err
	}
	if err := os.Rename(dir, filepath.Join(p.dataDir, folderName)); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := syncFolder(p.dataDir); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	return Load(p.dataDir, now)
}
