package peer

import (
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shoal/peer/identity"
)

// founded is a data folder with an identity in it.
func founded(t *testing.T, name string) (dir string, self *identity.Peer) {
	t.Helper()
	dir = t.TempDir()
	now := time.Now()
	cluster, err := identity.Found(now, netip.MustParsePrefix(DefaultClusterCIDR), netip.MustParsePrefix(DefaultServiceCIDR))
	if err != nil {
		t.Fatal(err)
	}
	pending, err := identity.Prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	self, err = pending.Found(now, cluster, name, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	return dir, self
}

func tokenOf(t *testing.T, self *identity.Peer) string {
	t.Helper()
	token, err := identity.NewToken(self.Cluster.Pin())
	if err != nil {
		t.Fatal(err)
	}
	return token.String()
}

// joinPort answers handshakes of the join service as the given peer.
func joinPort(t *testing.T, self *identity.Peer) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{identity.JoinService}, GetCertificate: self.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) {
				_ = conn.(*tls.Conn).Handshake()
				_ = conn.Close()
			}(conn)
		}
	}()
	return listener.Addr().String()
}

func TestHowToStart(t *testing.T) {
	dir, self := founded(t, "alpha")
	_, other := founded(t, "beta")
	home, foreign := joinPort(t, self), joinPort(t, other)
	damaged, _ := founded(t, "gamma")
	if err := os.Chmod(filepath.Join(damaged, "identity", "ca.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	joiner, _ := founded(t, "delta")
	manifest := filepath.Join(joiner, "identity", "identity.json")
	if text, err := os.ReadFile(manifest); err != nil || !strings.Contains(string(text), `"founder": true`) {
		t.Fatalf("%s, %v", text, err)
	} else if err := os.WriteFile(manifest, []byte(strings.Replace(string(text), `"founder": true`, `"founder": false`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	storeOnly := t.TempDir()
	if err := os.MkdirAll(filepath.Join(storeOnly, "consensus", "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		config Config
		start  Start
		want   string
	}{
		{"nothing there", Config{}, Founding, ""},
		{"an address and a token", Config{Addresses: []string{home}, Token: tokenOf(t, self)}, Joining, ""},
		{"an address and no token", Config{Addresses: []string{home}}, "", "a token is needed to join"},
		{"an address and half a token", Config{Addresses: []string{home}, Token: "abcdef.0123456789abcdef"}, "", "lacks its third part"},
		{"a token and no address", Config{Token: tokenOf(t, self)}, "", "no address"},
		{"state", Config{DataDir: dir}, Resuming, ""},
		{"state and its own cluster's address and token", Config{DataDir: dir, Addresses: []string{home}, Token: tokenOf(t, self)}, Resuming, ""},
		{"state and a dead address", Config{DataDir: dir, Addresses: []string{"127.0.0.1:1"}}, Resuming, ""},
		{"state and its own name and ranges", Config{DataDir: dir, Name: "alpha", ClusterCIDR: DefaultClusterCIDR}, Resuming, ""},
		{"state and another cluster's token", Config{DataDir: dir, Addresses: []string{home}, Token: tokenOf(t, other)}, Resuming, "the token is for another one"},
		{"state and another cluster's address", Config{DataDir: dir, Addresses: []string{home, foreign}}, Resuming, "belongs to another cluster"},
		{"state and another name", Config{DataDir: dir, Name: "beta"}, Resuming, `belongs to the peer "alpha"`},
		{"state and another range", Config{DataDir: dir, ServiceCIDR: "10.97.0.0/16"}, Resuming, "cannot be changed to 10.97.0.0/16"},
		{"voters at founding", Config{Voters: 5}, Founding, ""},
		{"voters and an address", Config{Voters: 5, Addresses: []string{home}, Token: tokenOf(t, self)}, "", "for the peer that founds"},
		{"voters and a founder's state", Config{DataDir: dir, Voters: 5}, Resuming, ""},
		{"voters and a joiner's state", Config{DataDir: joiner, Voters: 5}, Resuming, "for the peer that founds"},
		{"readable keys", Config{DataDir: damaged}, "", "chmod 600"},
		{"a store without an identity", Config{DataDir: storeOnly}, "", "holds a store but no identity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config.DataDir == "" {
				c.config.DataDir = t.TempDir()
			}
			config, err := c.config.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			start, loaded, err := config.HowToStart(t.Context(), time.Now())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if c.want == "" && start != c.start {
				t.Errorf("start %q, want %q", start, c.start)
			}
			if (loaded != nil) != (c.start == Resuming) {
				t.Errorf("identity %v", loaded)
			}
		})
	}
}

func TestDataDirMustBeWritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		file: "the data folder cannot be made", filepath.Join(file, "below"): "the data folder cannot be made",
		"/proc/shoal": "the data folder cannot be made", "/" + strings.Repeat("d", 120): "too long",
	} {
		err := Config{DataDir: dir}.checkDataDir()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := (Config{DataDir: dir}).checkDataDir(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != reserveName {
		t.Errorf("want nothing but the reserve, and the probe gone: %v, %v", entries, err)
	}
}

// A peer that resumes finds its predecessor's pod network on the host, and must not take an address of it for the host's own.
func TestTheClustersOwnAddressesAreNotTheHosts(t *testing.T) {
	address := func(text string) net.Addr {
		ip, network, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		return &net.IPNet{IP: ip, Mask: network.Mask}
	}
	p := &Peer{}
	got, err := p.outside([]net.Addr{address("127.0.0.1/8"), address("10.32.0.1/32"), address("10.96.0.1/32"), address("192.0.2.7/24")})
	if want := netip.MustParseAddr("192.0.2.7"); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := p.outside([]net.Addr{address("10.32.0.1/32")}); err != nil || got.IsValid() {
		t.Errorf("only pod addresses: %v, %v", got, err)
	}
}
