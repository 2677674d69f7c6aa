package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// PeerCertificateLife is how long a peer's certificate is valid; it is
	// renewed when two thirds of it are over.
	PeerCertificateLife = 30 * 24 * time.Hour

	// AdminCertificateLife is how long a kubeconfig's certificate is valid.
	AdminCertificateLife = 365 * 24 * time.Hour

	nodesGroup = "system:nodes"
	nodePrefix = "system:node:"
)

// SignPeer signs a peer's certificate request: a client certificate as the
// Kubernetes node <name>, and a server certificate for the API under its
// well-known names, the peer's name and its addresses. Only the public key is
// taken from the request; everything else comes from the arguments.
func (c *Cluster) SignPeer(now time.Time, csr *x509.CertificateRequest, name string, addresses []netip.Addr) (*x509.Certificate, error) {
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	public, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, errors.New("the certificate request's key is not a P-256 key")
	}
	id, err := PeerID(public)
	if err != nil {
		return nil, err
	}
	return c.signPeer(now, public, id, name, addresses)
}

func (c *Cluster) signPeer(now time.Time, public *ecdsa.PublicKey, id, name string, addresses []netip.Addr) (*x509.Certificate, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: nodePrefix + name, Organization: []string{nodesGroup}},
		NotBefore:   now.Add(-backdate),
		NotAfter:    c.notAfter(now, PeerCertificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{peerURI(c.ID, id)},
		DNSNames:    serverNames(name),
		IPAddresses: c.serverAddresses(addresses),
	}
	certificate, err := sign(template, c.CA, public, c.caKey)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of peer %s: %w", name, err)
	}
	return certificate, nil
}

// notAfter keeps a certificate from outliving the CA that signed it.
func (c *Cluster) notAfter(now time.Time, life time.Duration) time.Time {
	if end := now.Add(life); end.Before(c.CA.NotAfter) {
		return end
	}
	return c.CA.NotAfter
}

func serverNames(name string) []string {
	return []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", "localhost", name,
	}
}

func (c *Cluster) serverAddresses(addresses []netip.Addr) []net.IP {
	all := append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), c.KubernetesServiceIP()}, addresses...)
	var ips []net.IP
	for i, address := range all {
		if !slices.Contains(all[:i], address) {
			ips = append(ips, address.AsSlice())
		}
	}
	return ips
}

func peerURI(clusterID, peerID string) *url.URL {
	return &url.URL{Scheme: "shoal", Host: clusterID, Path: "/peer/" + peerID}
}

// Client makes a key and a client certificate for a user of the API, for
// example ("kubernetes-admin", "system:masters").
func (c *Cluster) Client(now time.Time, life time.Duration, user string, groups ...string) (certPEM, keyPEM []byte, err error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	certificate, err := sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		NotBefore:   now.Add(-backdate),
		NotAfter:    c.notAfter(now, life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, c.CA, key.Public(), c.caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the certificate of user %s: %w", user, err)
	}
	keyPEM, err = encodeKey(key)
	return encodeCertificate(certificate.Raw), keyPEM, err
}

// Admin is a client certificate with every right (group system:masters).
func (c *Cluster) Admin(now time.Time) (certPEM, keyPEM []byte, err error) {
	return c.Client(now, AdminCertificateLife, "kubernetes-admin", "system:masters")
}

// PeerCertificate is what a verified certificate says about its peer.
type PeerCertificate struct {
	ClusterID string
	PeerID    string
	Name      string
}

// ErrNotPeer means that a certificate, however valid, is not a peer's of this
// cluster: an administrator's, a pod's, or a peer's of another cluster.
var ErrNotPeer = errors.New("not a peer's certificate")

// VerifyPeer checks that a presented chain is a certificate of a peer of this
// cluster: signed by the CA, valid at now, for the given use, and naming the
// very key it was issued to.
func (c *Cluster) VerifyPeer(now time.Time, chain []*x509.Certificate, usage x509.ExtKeyUsage) (PeerCertificate, error) {
	if len(chain) == 0 {
		return PeerCertificate{}, fmt.Errorf("%w: none was given", ErrNotPeer)
	}
	leaf := chain[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: c.CAPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return PeerCertificate{}, fmt.Errorf("certificate %q: %w", leaf.Subject.CommonName, err)
	}
	peer, err := ParsePeer(leaf)
	if err != nil {
		return PeerCertificate{}, err
	}
	if peer.ClusterID != c.ID {
		return PeerCertificate{}, fmt.Errorf("%w of this cluster: it is of cluster %s", ErrNotPeer, peer.ClusterID)
	}
	return peer, nil
}

// ParsePeer reads the peer out of a certificate whose signature was checked,
// and refuses one whose URI names another key than its own.
func ParsePeer(leaf *x509.Certificate) (PeerCertificate, error) {
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "shoal" {
		return PeerCertificate{}, fmt.Errorf("%w: %q has no peer URI", ErrNotPeer, leaf.Subject.CommonName)
	}
	id, ok := strings.CutPrefix(leaf.URIs[0].Path, "/peer/")
	name, isNode := strings.CutPrefix(leaf.Subject.CommonName, nodePrefix)
	if !ok || !isNode {
		return PeerCertificate{}, fmt.Errorf("%w: %q has no peer URI", ErrNotPeer, leaf.Subject.CommonName)
	}
	if own := peerIDOf(leaf.RawSubjectPublicKeyInfo); own != id {
		return PeerCertificate{}, fmt.Errorf("%w: it names peer %s, but its key is peer %s", ErrNotPeer, id, own)
	}
	return PeerCertificate{ClusterID: leaf.URIs[0].Host, PeerID: id, Name: name}, nil
}

// newRequest is the certificate request of a key. Its subject is empty on
// purpose: the signer decides every name.
func newRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate request: %w", err)
	}
	return der, nil
}
