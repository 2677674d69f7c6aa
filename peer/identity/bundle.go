package identity

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// bundle is a Cluster on the wire of the join exchange. It holds every secret
// of the cluster and travels only over a connection whose two ends proved
// themselves: the server by the pinned CA, the joiner by its token.
type bundle struct {
	CA                string       `json:"ca"`
	CAKey             string       `json:"caKey"`
	ServiceAccountKey string       `json:"serviceAccountKey"`
	GossipKey         []byte       `json:"gossipKey"`
	EncryptionKey     []byte       `json:"encryptionKey"`
	ClusterCIDR       netip.Prefix `json:"clusterCIDR"`
	ServiceCIDR       netip.Prefix `json:"serviceCIDR"`
}

// MarshalJSON writes the cluster with all its secrets.
func (c *Cluster) MarshalJSON() ([]byte, error) {
	caKey, err := encodeKey(c.caKey)
	if err != nil {
		return nil, err
	}
	serviceAccountKey, err := encodeKey(c.ServiceAccountKey)
	if err != nil {
		return nil, err
	}
	return json.Marshal(bundle{
		CA: string(c.CAPEM()), CAKey: string(caKey), ServiceAccountKey: string(serviceAccountKey),
		GossipKey: c.GossipKey, EncryptionKey: c.EncryptionKey,
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR,
	})
}

// UnmarshalJSON reads a cluster and refuses one whose parts do not fit.
func (c *Cluster) UnmarshalJSON(text []byte) error {
	var b bundle
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	read, err := b.cluster()
	if err != nil {
		return err
	}
	*c = *read
	return nil
}

func (b bundle) cluster() (*Cluster, error) {
	ca, err := decodeCertificate([]byte(b.CA))
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	caKey, err := decodeKey([]byte(b.CAKey))
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	serviceAccountKey, err := decodeKey([]byte(b.ServiceAccountKey))
	if err != nil {
		return nil, fmt.Errorf("service-account key: %w", err)
	}
	cluster := &Cluster{
		ID: peerIDOf(ca.RawSubjectPublicKeyInfo), CA: ca, caKey: caKey, ServiceAccountKey: serviceAccountKey,
		GossipKey: b.GossipKey, EncryptionKey: b.EncryptionKey,
		ClusterCIDR: b.ClusterCIDR, ServiceCIDR: b.ServiceCIDR,
	}
	return cluster, cluster.check()
}
