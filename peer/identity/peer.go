package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// renewalRetry is how long a failed renewal waits for its next attempt; the
// last third of a certificate's life holds more than 200 of them.
const renewalRetry = time.Hour

// Peer is who this process is: its own keys, its certificate, its cluster.
type Peer struct {
	Cluster *Cluster
	// ID is the peer's ID, a hash of its public key.
	ID string
	// Name is its Kubernetes Node name.
	Name string
	// Founder says that this peer made the cluster, so that a crash between
	// founding the identity and founding the store can be taken up again.
	Founder bool
	// WireGuard is the private key of the peer's tunnel.
	WireGuard WireGuardKey

	dir string
	key *ecdsa.PrivateKey

	certificate atomic.Pointer[tls.Certificate]
	renewal     sync.Mutex // one renewal at a time, so that disk and memory agree
}

// Load reads the identity in a data folder. Its error is fs.ErrNotExist when
// there is none, and otherwise one sentence that says what is wrong with the
// folder and what to do. An expired certificate is no error: the peer holds
// the CA and signs itself a new one (see Renew).
func Load(dataDir string, now time.Time) (*Peer, error) {
	f, err := openFolder(filepath.Join(dataDir, folderName))
	if err != nil {
		return nil, err
	}
	m, err := f.manifest()
	if err != nil {
		return nil, err
	}
	cluster, err := f.cluster(m)
	if err != nil {
		return nil, err
	}
	key, wireGuard, err := f.ownKeys()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{peerKeyFile, wireGuardFile} {
		if m.Sums[name] != f.sums[name] {
			return nil, f.damaged(name, errors.New("its SHA-256 is not the recorded one"))
		}
	}
	id, err := PeerID(key.Public())
	if err != nil {
		return nil, err
	}
	if id != m.PeerID {
		return nil, f.damaged(peerKeyFile, fmt.Errorf("it is the key of peer %s, not of %s", id, m.PeerID))
	}
	p := &Peer{Cluster: cluster, ID: id, Name: m.Name, Founder: m.Founder, WireGuard: wireGuard, dir: f.path, key: key}
	return p, p.loadCertificate(f, now)
}

func (p *Peer) loadCertificate(f folder, now time.Time) error {
	if now.Before(p.Cluster.CA.NotBefore) {
		return fmt.Errorf("this host's clock says %s, but the cluster was founded at %s: set the clock",
			stamp(now), stamp(p.Cluster.CA.NotBefore.Add(backdate)))
	}
	if now.After(p.Cluster.CA.NotAfter) {
		return fmt.Errorf("the cluster's CA expired at %s (this host's clock says %s)", stamp(p.Cluster.CA.NotAfter), stamp(now))
	}
	content, err := f.read(peerCertFile)
	if err != nil {
		return err
	}
	leaf, err := decodeCertificate(content)
	if err != nil {
		return f.damaged(peerCertFile, err)
	}
	// Judged at a moment inside its validity: being expired is repaired by a
	// renewal, everything else is not.
	peer, err := p.Cluster.VerifyPeer(leaf.NotAfter.Add(-time.Second), []*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return f.damaged(peerCertFile, err)
	}
	if peer.PeerID != p.ID || peer.Name != p.Name {
		return f.damaged(peerCertFile, fmt.Errorf("it is the certificate of peer %s (%s)", peer.Name, peer.PeerID))
	}
	p.swap(leaf)
	return nil
}

func (f folder) ownKeys() (*ecdsa.PrivateKey, WireGuardKey, error) {
	content, err := f.read(peerKeyFile)
	if err != nil {
		return nil, WireGuardKey{}, err
	}
	key, err := decodeKey(content)
	if err != nil {
		return nil, WireGuardKey{}, f.damaged(peerKeyFile, err)
	}
	content, err = f.read(wireGuardFile)
	if err != nil {
		return nil, WireGuardKey{}, err
	}
	wireGuard, err := ParseWireGuardKey(string(content))
	if err != nil {
		return nil, WireGuardKey{}, f.damaged(wireGuardFile, err)
	}
	return key, wireGuard, nil
}

// swap puts a certificate into use for every connection from now on. The CA
// goes along, so that a joiner that knows only its hash can check it.
func (p *Peer) swap(leaf *x509.Certificate) {
	p.certificate.Store(&tls.Certificate{
		Certificate: [][]byte{leaf.Raw, p.Cluster.CA.Raw}, PrivateKey: p.key, Leaf: leaf,
	})
}

// Certificate is the current certificate with its key.
func (p *Peer) Certificate() *tls.Certificate { return p.certificate.Load() }

// GetCertificate serves tls.Config on the server's side.
func (p *Peer) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return p.Certificate(), nil
}

// GetClientCertificate serves tls.Config on the client's side.
func (p *Peer) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return p.Certificate(), nil
}

// DueForRenewal is the moment when two thirds of the certificate's life are over.
func (p *Peer) DueForRenewal() time.Time {
	leaf := p.Certificate().Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

// Renew replaces the certificate by a new one for the given addresses. The new
// one is in use even when writing it to disk failed.
func (p *Peer) Renew(now time.Time, addresses []netip.Addr) error {
	p.renewal.Lock()
	defer p.renewal.Unlock()
	leaf, err := p.Cluster.signPeer(now, &p.key.PublicKey, p.ID, p.Name, addresses)
	if err != nil {
		return err
	}
	p.swap(leaf)
	return writeFile(p.dir, peerCertFile, encodeCertificate(leaf.Raw))
}

// Addresses are those of the current certificate.
func (p *Peer) Addresses() []netip.Addr {
	var addresses []netip.Addr
	for _, ip := range p.Certificate().Leaf.IPAddresses {
		if address, ok := netip.AddrFromSlice(ip); ok {
			addresses = append(addresses, address.Unmap())
		}
	}
	return addresses
}

// Ensure renews the certificate when it is due, or lacks one of the addresses
// because the host moved, and tells whether it did.
func (p *Peer) Ensure(now time.Time, addresses []netip.Addr) (bool, error) {
	held := p.Addresses()
	complete := true
	for _, address := range addresses {
		complete = complete && slices.Contains(held, address.Unmap())
	}
	if complete && now.Before(p.DueForRenewal()) {
		return false, nil
	}
	return true, p.Renew(now, addresses)
}

// Run keeps the certificate fresh until ctx ends.
func (p *Peer) Run(ctx context.Context, logger *slog.Logger) error {
	for {
		wait := time.Until(p.DueForRenewal())
		if wait <= 0 {
			if err := p.Renew(time.Now(), p.Addresses()); err != nil {
				logger.Error("certificate renewal", "peer", p.ID, "error", err)
			} else {
				logger.Info("certificate renewed", "peer", p.ID, "until", p.Certificate().Leaf.NotAfter)
			}
			wait = max(time.Until(p.DueForRenewal()), renewalRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(wait, renewalRetry)): // short steps: a suspended host's timers stand still
		}
	}
}

// Forget removes the identity from a data folder, after the peer left its cluster.
func Forget(dataDir string) error {
	return errors.Join(os.RemoveAll(filepath.Join(dataDir, folderName)), os.RemoveAll(filepath.Join(dataDir, pendingName)))
}

// CheckToken refuses a token for another cluster than the one this data folder
// belongs to.
func (p *Peer) CheckToken(t Token) error {
	if t.Pin != p.Cluster.Pin() {
		return fmt.Errorf("%s belongs to cluster %s, but the token is for another one: choose another --data-dir, or start without token and addresses to resume",
			filepath.Dir(p.dir), p.Cluster.ID)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
