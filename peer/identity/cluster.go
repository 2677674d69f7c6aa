// Package identity holds who a peer is and which cluster it belongs to: the
// cluster's secrets made at founding, the peer's own key and certificate, the
// tokens that let further peers in, and the exchange that uses them.
//
// A peer is its key: its ID is a hash of its public key, so neither an address
// nor a name can be mistaken for it. Every peer holds the cluster's CA key,
// since there is no master that could sign for the others; whoever reads one
// peer's data folder therefore owns the cluster, exactly as whoever reads one
// Kubernetes control plane node's does.
package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"time"
)

const (
	caLife = 10 * 365 * 24 * time.Hour

	// backdate is how far a certificate's validity reaches into the past, so
	// that users of a host whose clock is hours behind are told so, and not that
	// nobody knows them.
	backdate = 12 * time.Hour

	gossipKeySize     = 32 // AES-256, memberlist's largest
	encryptionKeySize = 32 // AES-256-GCM for Secrets at rest
	pinSize           = 20 // bytes of the CA's hash in a token: 160 bits
)

// Cluster is what all peers of one cluster share. It is made once, at
// founding, and handed to every joining peer; it never changes afterwards.
type Cluster struct {
	// ID is the first 16 hex characters of the SHA-256 of the CA's public key.
	ID string
	// CA is the root of every certificate in the cluster.
	CA    *x509.Certificate
	caKey *ecdsa.PrivateKey
	// GossipKey encrypts gossip packets (32 bytes).
	GossipKey []byte
	// EncryptionKey encrypts Secrets at rest (32 bytes).
	EncryptionKey []byte
	// ServiceAccountKey signs service-account tokens (ES256).
	ServiceAccountKey *ecdsa.PrivateKey
	// ClusterCIDR and ServiceCIDR are the ranges of pods and Services.
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
}

// Found makes the secrets of a new cluster.
func Found(now time.Time, clusterCIDR, serviceCIDR netip.Prefix) (*Cluster, error) {
	caKey, err := newKey()
	if err != nil {
		return nil, err
	}
	id, err := PeerID(caKey.Public())
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "shoal-" + id, Organization: []string{"shoal"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	ca, err := sign(template, template, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's CA: %w", err)
	}
	serviceAccountKey, err := newKey()
	if err != nil {
		return nil, err
	}
	cluster := &Cluster{
		ID: id, CA: ca, caKey: caKey, ServiceAccountKey: serviceAccountKey,
		GossipKey: make([]byte, gossipKeySize), EncryptionKey: make([]byte, encryptionKeySize),
		ClusterCIDR: clusterCIDR, ServiceCIDR: serviceCIDR,
	}
	for _, key := range [][]byte{cluster.GossipKey, cluster.EncryptionKey} {
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("make the cluster's keys: %w", err)
		}
	}
	return cluster, nil
}

// PeerID names a public key: the first 16 hex characters of the SHA-256 of its
// SubjectPublicKeyInfo. It is the raft address and the gossip identity.
func PeerID(public crypto.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("public key of an unknown kind: %w", err)
	}
	return peerIDOf(spki), nil
}

func peerIDOf(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:8])
}

// Pin is the hash of the CA's public key that tokens carry: 32 characters of
// base32, 160 bits of SHA-256.
func (c *Cluster) Pin() string { return PinOf(c.CA) }

// PinOf is the pin of any CA certificate.
func PinOf(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:pinSize]))
}

// CAPool holds the cluster's CA alone.
func (c *Cluster) CAPool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.CA)
	return pool
}

// CAPEM is the CA certificate in PEM, as kubeconfigs and pods carry it.
func (c *Cluster) CAPEM() []byte { return encodeCertificate(c.CA.Raw) }

// CAKey signs with the CA's key, for the controller that signs certificate requests.
func (c *Cluster) CAKey() crypto.Signer { return c.caKey }

// CAKeyPEM is the CA's private key in PEM (PKCS #8), for upstream's
// certificate-signing controller.
func (c *Cluster) CAKeyPEM() ([]byte, error) { return encodeKey(c.caKey) }

// KubernetesServiceIP is the first address of the Service range, where the API
// answers as kubernetes.default.
func (c *Cluster) KubernetesServiceIP() netip.Addr { return c.ServiceCIDR.Masked().Addr().Next() }

// check proves that the parts fit each other; a data folder or a join answer
// whose parts do not is refused as a whole.
func (c *Cluster) check() error {
	switch {
	case c.CA == nil || c.caKey == nil || c.ServiceAccountKey == nil:
		return errors.New("a key or the CA certificate is missing")
	case !c.CA.IsCA:
		return errors.New("the CA certificate is not a CA's")
	case !c.caKey.PublicKey.Equal(c.CA.PublicKey):
		return errors.New("the CA's key does not belong to its certificate")
	case c.ID != peerIDOf(c.CA.RawSubjectPublicKeyInfo):
		return errors.New("the cluster ID does not belong to the CA")
	case len(c.GossipKey) != gossipKeySize || len(c.EncryptionKey) != encryptionKeySize:
		return errors.New("the gossip or encryption key has the wrong length")
	case !c.ClusterCIDR.IsValid() || !c.ServiceCIDR.IsValid():
		return errors.New("the pod or Service range is missing")
	}
	return c.CA.CheckSignature(c.CA.SignatureAlgorithm, c.CA.RawTBSCertificate, c.CA.Signature)
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// sign gives the template a random serial number and signs it.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func decodeCertificate(text []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func decodeKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("not a P-256 key")
	}
	return ec, nil
}
