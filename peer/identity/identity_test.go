package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	noon        = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	podRange    = netip.MustParsePrefix("10.32.0.0/12")
	serverRange = netip.MustParsePrefix("10.96.0.0/16")
	homeAddress = netip.MustParseAddr("192.0.2.1")
)

func newCluster(t *testing.T, now time.Time) *Cluster {
	t.Helper()
	cluster, err := Found(now, podRange, serverRange)
	if err != nil {
		t.Fatal(err)
	}
	return cluster
}

// newPeer makes a peer of the cluster in a data folder of its own.
func newPeer(t *testing.T, cluster *Cluster, name string, now time.Time) (*Peer, string) {
	t.Helper()
	dir := t.TempDir()
	pending, err := Prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := pending.Found(now, cluster, name, []netip.Addr{homeAddress})
	if err != nil {
		t.Fatal(err)
	}
	return peer, dir
}

func TestFoundingSurvivesTheDisk(t *testing.T) {
	cluster := newCluster(t, noon)
	made, dir := newPeer(t, cluster, "alpha", noon)
	read, err := Load(dir, noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if read.ID != made.ID || read.Name != "alpha" || !read.Founder || read.WireGuard != made.WireGuard || read.Cluster.ID != cluster.ID {
		t.Errorf("read %+v, made %+v", read, made)
	}
	same := bytes.Equal(read.Cluster.GossipKey, cluster.GossipKey) && bytes.Equal(read.Cluster.EncryptionKey, cluster.EncryptionKey) &&
		read.Cluster.ServiceAccountKey.Equal(cluster.ServiceAccountKey) && read.Cluster.caKey.Equal(cluster.caKey) &&
		read.Cluster.ClusterCIDR == podRange && read.Cluster.ServiceCIDR == serverRange
	if !same {
		t.Error("the cluster's secrets changed on the disk")
	}
	if _, err := os.Stat(filepath.Join(dir, pendingName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pending keys are still there: %v", err)
	}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := entry.Info()
		if want := fs.FileMode(0o600); err == nil && !entry.IsDir() && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if entry.IsDir() && info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCertificateNamesThePeer(t *testing.T) {
	cluster := newCluster(t, noon)
	peer, _ := newPeer(t, cluster, "alpha", noon)
	leaf := peer.Certificate().Leaf
	if leaf.Subject.CommonName != "system:node:alpha" || !slices.Equal(leaf.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("subject %s", leaf.Subject)
	}
	if leaf.URIs[0].String() != "shoal://"+cluster.ID+"/peer/"+peer.ID {
		t.Errorf("URI %s", leaf.URIs[0])
	}
	for _, host := range []string{"kubernetes", "kubernetes.default.svc.cluster.local", "localhost", "127.0.0.1", "10.96.0.1", "192.0.2.1", "alpha"} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: cluster.CAPool(), CurrentTime: noon, DNSName: host})
		if err != nil {
			t.Errorf("not valid for %s: %v", host, err)
		}
	}
	if life := leaf.NotAfter.Sub(noon); life != PeerCertificateLife {
		t.Errorf("lives %s", life)
	}
}

func TestVerifyPeer(t *testing.T) {
	cluster, foreign := newCluster(t, noon), newCluster(t, noon)
	peer, _ := newPeer(t, cluster, "alpha", noon)
	stranger, _ := newPeer(t, foreign, "alpha", noon)
	adminPEM, _, err := cluster.Admin(noon)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := decodeCertificate(adminPEM)
	if err != nil {
		t.Fatal(err)
	}
	// A certificate that a leaky signer made for another peer's ID.
	impostorKey, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	impostor, err := cluster.signPeer(noon, &impostorKey.PublicKey, peer.ID, "alpha", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		leaf *x509.Certificate
		now  time.Time
		want string
	}{
		{"a peer", peer.Certificate().Leaf, noon, ""},
		{"expired", peer.Certificate().Leaf, noon.Add(PeerCertificateLife + time.Minute), "expired"},
		{"not yet valid", peer.Certificate().Leaf, noon.Add(-backdate - time.Minute), "not yet valid"},
		{"of another cluster", stranger.Certificate().Leaf, noon, "unknown authority"},
		{"an administrator's", admin, noon, "not a peer's certificate"},
		{"of another key", impostor, noon, "its key is peer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := cluster.VerifyPeer(c.now, []*x509.Certificate{c.leaf}, x509.ExtKeyUsageClientAuth)
			if c.want == "" {
				if err != nil || got.PeerID != peer.ID || got.Name != "alpha" {
					t.Errorf("%v, %+v", err, got)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not say %q", err, c.want)
			}
		})
	}
	if _, err := cluster.VerifyPeer(noon, nil, x509.ExtKeyUsageClientAuth); !errors.Is(err, ErrNotPeer) {
		t.Errorf("no certificate at all: %v", err)
	}
}

func TestRenewal(t *testing.T) {
	cluster := newCluster(t, noon)
	peer, dir := newPeer(t, cluster, "alpha", noon)
	first := peer.Certificate()
	addresses := []netip.Addr{homeAddress}
	if renewed, err := peer.Ensure(noon.Add(19*24*time.Hour), addresses); renewed || err != nil {
		t.Errorf("renewed after 19 days: %v", err)
	}
	if renewed, err := peer.Ensure(noon, []netip.Addr{netip.MustParseAddr("192.0.2.77")}); !renewed || err != nil {
		t.Errorf("not renewed for a new address: %v", err)
	}
	late := noon.Add(21 * 24 * time.Hour)
	if renewed, err := peer.Ensure(late, addresses); !renewed || err != nil {
		t.Fatalf("not renewed after 21 days: %v", err)
	}
	if bytes.Equal(first.Certificate[0], peer.Certificate().Certificate[0]) {
		t.Error("the certificate in use is still the old one")
	}
	read, err := Load(dir, late)
	if err != nil || !bytes.Equal(read.Certificate().Certificate[0], peer.Certificate().Certificate[0]) {
		t.Errorf("the new certificate is not on the disk: %v", err)
	}
	// A peer that slept through the whole life still loads, and renews itself.
	sleeper := noon.Add(400 * 24 * time.Hour)
	read, err = Load(dir, sleeper)
	if err != nil {
		t.Fatal(err)
	}
	if renewed, err := read.Ensure(sleeper, addresses); !renewed || err != nil {
		t.Errorf("after a year: %v", err)
	}
	if _, err := cluster.VerifyPeer(sleeper, []*x509.Certificate{read.Certificate().Leaf}, x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
}

func TestRunRenewsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := newCluster(t, time.Now())
		peer, _ := newPeer(t, cluster, "alpha", time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- peer.Run(ctx, slog.New(slog.DiscardHandler)) }()
		for range 200 {
			time.Sleep(24 * time.Hour)
			if left := time.Until(peer.Certificate().Leaf.NotAfter); left < 9*24*time.Hour {
				t.Fatalf("only %s left", left)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestLoadRefuses(t *testing.T) {
	replace := func(name string, change func(text string) string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, folderName, name)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(change(string(text))), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	mode := func(name string, mode fs.FileMode) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, folderName, name), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   string
	}{
		{"a newer format", replace(manifestFile, func(s string) string { return strings.Replace(s, `"format": 1`, `"format": 2`, 1) }), "newer version (format 2, this program knows 1)"},
		{"no format", replace(manifestFile, func(s string) string { return strings.Replace(s, `"format": 1`, `"format": 0`, 1) }), "damaged"},
		{"a torn manifest", replace(manifestFile, func(s string) string { return s[:len(s)/2] }), "identity.json is damaged"},
		{"a flipped bit in the CA key", replace(caKeyFile, func(s string) string { return strings.Replace(s, "M", "N", 1) }), "ca.key is damaged"},
		{"an empty gossip key", replace(gossipFile, func(string) string { return "" }), "gossip.key is damaged"},
		{"a torn certificate", replace(peerCertFile, func(s string) string { return s[:100] }), "peer.crt is damaged"},
		{"a readable CA key", mode(caKeyFile, 0o644), "chmod 600"},
		{"an open folder", mode("", 0o755), "chmod 700"},
		{"a missing file", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, folderName, encryptionFile)) }, "encryption.key is missing"},
		{"another cluster's ID", replace(manifestFile, func(s string) string {
			return strings.Replace(s, `"clusterID": "`, `"clusterID": "0000`, 1)
		}), "mixes two clusters"},
		{"another peer's key", otherPeersFile(peerKeyFile), "peer.key is damaged"},
		{"another peer's certificate", otherPeersFile(peerCertFile), "peer.crt is damaged"},
		{"a CA of another cluster", otherPeersFile(caFile), "ca.crt is damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, dir := newPeer(t, newCluster(t, noon), "alpha", noon)
			c.damage(t, dir)
			_, err := Load(dir, noon)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not say %q", err, c.want)
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir)) {
				t.Errorf("not one sentence with the path: %q", err)
			}
		})
	}
	if _, err := Load(t.TempDir(), noon); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
	_, dir := newPeer(t, newCluster(t, noon), "alpha", noon)
	if _, err := Load(dir, noon.Add(-24*time.Hour)); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("a clock before the founding: %v", err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func otherPeersFile(name string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		_, other := newPeer(t, newCluster(t, noon), "beta", noon)
		text, err := os.ReadFile(filepath.Join(other, folderName, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, folderName, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever breaks off an attempt to join, the next one is the same peer.
func TestPendingKeysOutliveACrash(t *testing.T) {
	dir := t.TempDir()
	first, err := Prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Prepare(dir)
	if err != nil || again.ID != first.ID || again.WireGuard != first.WireGuard {
		t.Errorf("another peer after a restart: %v", err)
	}
	// A crash while the first file was being written leaves no key behind.
	remove(t, filepath.Join(dir, pendingName, wireGuardFile))
	if fresh, err := Prepare(dir); err != nil || fresh.ID == first.ID {
		t.Errorf("half a set of keys was used: %v", err)
	}
	if _, err := again.Found(noon, newCluster(t, noon), "alpha", nil); err == nil {
		t.Error("keys that are not those on the disk became an identity")
	}
}

func TestPrepareRefusesAnExistingIdentity(t *testing.T) {
	_, dir := newPeer(t, newCluster(t, noon), "alpha", noon)
	if _, err := Prepare(dir); err == nil || !strings.Contains(err.Error(), "already belongs to a cluster") {
		t.Errorf("%v", err)
	}
	if err := Forget(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(dir); err != nil {
		t.Error(err)
	}
}

func TestBundleRefusesWhatDoesNotFit(t *testing.T) {
	cluster, other := newCluster(t, noon), newCluster(t, noon)
	text, err := json.Marshal(cluster)
	if err != nil {
		t.Fatal(err)
	}
	var read Cluster
	if err := json.Unmarshal(text, &read); err != nil || read.ID != cluster.ID {
		t.Fatal(err)
	}
	mixed := *cluster
	mixed.CA = other.CA
	if text, err = json.Marshal(&mixed); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &read); err == nil || !strings.Contains(err.Error(), "does not belong to its certificate") {
		t.Errorf("a CA key of another CA: %v", err)
	}
	if read.ID != cluster.ID {
		t.Error("a refused bundle changed the cluster")
	}
}

func TestKubeconfig(t *testing.T) {
	cluster := newCluster(t, time.Now())
	text, err := cluster.Kubeconfig(time.Now(), []Endpoint{{"b", "192.0.2.2:7443"}, {"a", "192.0.2.1:7443"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"current-context: b", "https://192.0.2.1:7443", "certificate-authority-data", "client-key-data"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	certificate, key, err := cluster.Admin(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(certificate, key); err != nil {
		t.Error(err)
	}
}

func TestWireGuardKeys(t *testing.T) {
	// RFC 7748 section 6.1: Alice's keys.
	private := WireGuardKey{0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
		0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a}
	if got := private.Public().String(); got != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" {
		t.Errorf("public key %s", got)
	}
	made, err := NewWireGuardKey()
	if err != nil {
		t.Fatal(err)
	}
	if read, err := ParseWireGuardKey(made.String() + "\n"); err != nil || read != made {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"", "AAAA", "not base64!", strings.Repeat("A", 100)} {
		if _, err := ParseWireGuardKey(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
