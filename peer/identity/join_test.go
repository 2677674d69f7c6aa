package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// door is a peer that lets others in, on a real TLS port of the loopback.
type door struct {
	peer    *Peer
	server  *JoinServer
	address string
	token   Token

	mu      sync.Mutex
	clock   time.Time
	tokens  map[string]TokenRecord
	peers   map[string]PeerRecord // by name
	lookups atomic.Int64
	broken  error
}

func openDoor(t *testing.T, now time.Time) *door {
	t.Helper()
	cluster := newCluster(t, now)
	d := &door{clock: now, peers: map[string]PeerRecord{}}
	d.peer, _ = newPeer(t, cluster, "founder", now)
	var err error
	if d.token, err = NewToken(cluster.Pin()); err != nil {
		t.Fatal(err)
	}
	d.tokens = map[string]TokenRecord{d.token.ID: {ID: d.token.ID, Secret: d.token.Secret, Expires: now.Add(time.Hour), Usable: true}}
	d.server = &JoinServer{
		Peer: d.peer, Version: "test", Logger: slog.New(slog.DiscardHandler),
		LookupToken: func(_ context.Context, id string) (TokenRecord, bool, error) {
			d.lookups.Add(1)
			record, found := d.tokens[id]
			return record, found, d.broken
		},
		NameTaken: func(_ context.Context, name, peerID string) (bool, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			record, found := d.peers[name]
			return name == "founder" || found && record.PeerID != peerID, nil
		},
		RegisterPeer: func(_ context.Context, record PeerRecord) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.peers[record.Name] = record
			return nil
		},
		Members: func() []string { return []string{"192.0.2.1:7443"} },
		Now: func() time.Time {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.clock
		},
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{JoinService}, GetCertificate: d.peer.GetCertificate, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	d.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.server.Run(ctx, plainListener{listener}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return d
}

// plainListener hides the TLS type, as the link does: http.Server would look
// for a handler of the negotiated protocol otherwise.
type plainListener struct{ net.Listener }

func (l plainListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return struct{ net.Conn }{conn}, err
}

// knock is a host with an empty data folder that wants in.
func (d *door) knock(t *testing.T, name string) (Joiner, string) {
	t.Helper()
	dir := t.TempDir()
	pending, err := Prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	return Joiner{
		Token: d.token, Pending: pending, Name: name, Version: "test", Zone: "z1", Port: 7443,
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, Now: func() time.Time { return d.clock },
	}, dir
}

func TestJoin(t *testing.T) {
	d := openDoor(t, noon)
	joiner, dir := d.knock(t, "second")
	joined, err := joiner.Join(t.Context(), []string{d.address})
	if err != nil {
		t.Fatal(err)
	}
	record := d.peers["second"]
	if record.PeerID != joined.Peer.ID || record.Zone != "z1" || record.Port != 7443 || record.WireGuard != joiner.Pending.WireGuard.Public() ||
		record.Addresses[0] != joined.Advertise || !record.Joined.Equal(noon) {
		t.Errorf("registered %+v", record)
	}
	if joined.Members[0] != "192.0.2.1:7443" {
		t.Errorf("members %v", joined.Members)
	}
	read, err := Load(dir, noon)
	if err != nil {
		t.Fatal(err)
	}
	if read.Cluster.ID != d.peer.Cluster.ID || read.Founder || !bytes.Equal(read.Cluster.GossipKey, d.peer.Cluster.GossipKey) {
		t.Error("the joined peer does not hold the cluster's secrets")
	}
	// Only the CA's key can sign the next one.
	if third, _ := newPeer(t, read.Cluster, "third", noon); third.Cluster.ID != d.peer.Cluster.ID {
		t.Error("the joined peer cannot let the next one in")
	}
}

func TestJoinTakesTheConnectionsAddress(t *testing.T) {
	d := openDoor(t, noon)
	joiner, _ := d.knock(t, "second")
	joiner.Addresses = nil
	joined, err := joiner.Join(t.Context(), []string{d.address})
	if err != nil || joined.Advertise.String() != "127.0.0.1" {
		t.Errorf("%v, %+v", err, joined)
	}
}

// The answer got lost, or the host crashed before it wrote it down.
func TestJoinAgainIsTheSamePeer(t *testing.T) {
	d := openDoor(t, noon)
	joiner, dir := d.knock(t, "second")
	d.peers["second"] = PeerRecord{Name: "second", PeerID: joiner.Pending.ID}
	if _, err := joiner.Join(t.Context(), []string{d.address}); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, noon); err != nil {
		t.Error(err)
	}
}

func TestJoinRefusals(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, d *door, j *Joiner)
		want  string
	}{
		{"wrong secret", func(_ *testing.T, _ *door, j *Joiner) { j.Token.Secret = "aaaaaaaaaaaaaaaa" }, "the token is not known to this cluster"},
		{"unknown token", func(_ *testing.T, _ *door, j *Joiner) { j.Token.ID = "zzzzzz" }, "the token is not known to this cluster"},
		{"expired token", func(_ *testing.T, d *door, _ *Joiner) { d.clock = noon.Add(2 * time.Hour) }, "the token expired at 2026-06-01 13:00:00 UTC"},
		{"a clock ahead", func(_ *testing.T, d *door, j *Joiner) { j.Now = func() time.Time { return noon.Add(3 * time.Minute) } },
			"this host's clock says 2026-06-01 12:03:00 UTC, the cluster's says 2026-06-01 12:00:00 UTC, 3m0s apart"},
		{"a clock a year behind", func(_ *testing.T, d *door, j *Joiner) { j.Now = func() time.Time { return noon.AddDate(-1, 0, 0) } }, "set this host's clock"},
		{"name taken", func(_ *testing.T, _ *door, j *Joiner) { j.Name = "founder" }, `the name "founder" is taken by another peer`},
		{"no DNS name", func(_ *testing.T, _ *door, j *Joiner) { j.Name = "Not_A_Name" }, "not a DNS name"},
		{"an address nobody reaches", func(_ *testing.T, _ *door, j *Joiner) { j.Addresses[0] = netip.IPv4Unspecified() }, "--advertise"},
		{"an address among the pods", func(_ *testing.T, _ *door, j *Joiner) { j.Addresses[0] = netip.MustParseAddr("10.33.1.1") }, "inside the cluster's pod range"},
		{"a store without quorum", func(_ *testing.T, d *door, _ *Joiner) { d.broken = errors.New("secret internals") }, "its store does not answer"},
		{"another cluster's token", func(t *testing.T, _ *door, j *Joiner) { j.Token.Pin = newCluster(t, noon).Pin() }, "belongs to another cluster than the token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := openDoor(t, noon)
			joiner, dir := d.knock(t, "second")
			c.spoil(t, d, &joiner)
			_, err := joiner.Join(t.Context(), []string{d.address})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not say %q", err, c.want)
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "secret internals") || strings.Contains(err.Error(), joiner.Token.Secret)) {
				t.Errorf("says too much: %q", err)
			}
			if _, err := Load(dir, noon); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a refused host has an identity: %v", err)
			}
			if len(d.peers) != 0 {
				t.Errorf("a refused host was registered: %v", d.peers)
			}
		})
	}
}

// The secret must not be told to a server that did not prove to be the pinned
// cluster, nor while the clocks disagree.
func TestSecretIsToldLast(t *testing.T) {
	d := openDoor(t, noon)
	joiner, _ := d.knock(t, "second")
	foreign := joiner
	foreign.Token.Pin = newCluster(t, noon).Pin()
	late := joiner
	late.Now = func() time.Time { return noon.Add(time.Hour) }
	for _, j := range []Joiner{foreign, late} {
		if _, err := j.Join(t.Context(), []string{d.address}); err == nil {
			t.Error("joined")
		}
	}
	if n := d.lookups.Load(); n != 0 {
		t.Errorf("the token was presented %d times", n)
	}
}

// A thief with a token's text and any certificate of his own is no peer.
func TestJoinRefusesImpostorServers(t *testing.T) {
	d := openDoor(t, noon)
	other := newCluster(t, noon)
	thief, _ := newPeer(t, other, "founder", noon)
	// He shows the real CA's certificate, which is public, above his own leaf.
	certificate := tls.Certificate{
		Certificate: [][]byte{thief.Certificate().Certificate[0], d.peer.Cluster.CA.Raw}, PrivateKey: thief.key,
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{JoinService}}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	t.Cleanup(server.Close)
	joiner, _ := d.knock(t, "second")
	_, err := joiner.Join(t.Context(), []string{server.Listener.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "not a Shoal peer") {
		t.Errorf("%v", err)
	}
}

func TestJoinAtDeadAddresses(t *testing.T) {
	d := openDoor(t, noon)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := closed.Addr().String()
	_ = closed.Close()
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	for _, c := range []struct{ address, want string }{
		{dead, "no peer answers at " + dead + " (connection refused): check the address"},
		{web.Listener.Addr().String(), "is not a Shoal peer"},
		{secure.Listener.Addr().String(), "is not a Shoal peer"},
		{"no-such-host.invalid:7443", "no peer answers at no-such-host.invalid:7443"},
	} {
		joiner, _ := d.knock(t, "second")
		_, err := joiner.Join(t.Context(), []string{c.address})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.address, err, c.want)
		}
	}
	joiner, _ := d.knock(t, "second")
	if _, err := joiner.Join(t.Context(), []string{dead, d.address}); err != nil {
		t.Errorf("one living address of two: %v", err)
	}
	if _, err := joiner.Join(t.Context(), nil); err == nil {
		t.Error("joined through no address")
	}
}

func TestGuessingIsSlowedDown(t *testing.T) {
	d := openDoor(t, noon)
	joiner, _ := d.knock(t, "second")
	wrong := joiner
	wrong.Token.Secret = "aaaaaaaaaaaaaaaa"
	var err error
	for range attemptsPerSource + 1 {
		_, err = wrong.Join(t.Context(), []string{d.address})
	}
	if err == nil || !strings.Contains(err.Error(), "too many failed joins") {
		t.Errorf("after %d attempts: %v", attemptsPerSource+1, err)
	}
	before := d.lookups.Load()
	if _, err := joiner.Join(t.Context(), []string{d.address}); err == nil || d.lookups.Load() != before {
		t.Error("the right token was looked at too during the pause")
	}
	d.mu.Lock()
	d.clock = noon.Add(attemptWindow)
	d.mu.Unlock()
	if _, err := joiner.Join(t.Context(), []string{d.address}); err != nil {
		t.Errorf("after the pause: %v", err)
	}
}

func TestAttemptsOfOneSourceLeaveOthersAlone(t *testing.T) {
	var a attempts
	bad, good := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for range attemptsPerSource {
		a.failed(bad, noon)
	}
	if a.allowed(bad, noon) || !a.allowed(good, noon) {
		t.Error("the wrong source is held up")
	}
	if !a.allowed(bad, noon.Add(attemptWindow)) || !a.allowed(bad, noon.Add(-time.Hour)) {
		t.Error("the pause does not end")
	}
}

func TestCheckAddress(t *testing.T) {
	d := openDoor(t, noon)
	stranger, _ := newPeer(t, newCluster(t, noon), "stranger", noon)
	if err := stranger.CheckAddress(t.Context(), nil, d.address); err == nil || !strings.Contains(err.Error(), "belongs to another cluster than this data folder") {
		t.Errorf("%v", err)
	}
	if err := d.peer.CheckAddress(t.Context(), nil, d.address); err != nil {
		t.Error(err)
	}
	if err := d.peer.CheckAddress(t.Context(), nil, "127.0.0.1:1"); err != nil {
		t.Errorf("a dead address must not stop a resume: %v", err)
	}
	if err := stranger.CheckToken(d.token); err == nil || !strings.Contains(err.Error(), "the token is for another one") {
		t.Errorf("%v", err)
	}
	if err := d.peer.CheckToken(d.token); err != nil {
		t.Error(err)
	}
}

// FuzzJoinRequest sends any bytes to the handler: it answers with a refusal
// and registers nobody, whatever they are.
func FuzzJoinRequest(f *testing.F) {
	cluster, err := Found(noon, podRange, serverRange)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(JoinRequest{TokenID: "abcdef", TokenSecret: "0123456789abcdef", Name: "n", Time: noon, Port: 1, Addresses: []netip.Addr{homeAddress}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"csr":"AAAA","addresses":[null]}`))
	f.Add([]byte(`[`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		server := &JoinServer{
			Peer: &Peer{Cluster: cluster}, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return noon },
			LookupToken: func(context.Context, string) (TokenRecord, bool, error) {
				return TokenRecord{ID: "abcdef", Secret: "0123456789abcdef", Usable: true}, true, nil
			},
			NameTaken:    func(context.Context, string, string) (bool, error) { return false, nil },
			RegisterPeer: func(context.Context, PeerRecord) error { t.Error("registered"); return nil },
			Members:      func() []string { return nil },
		}
		recorder := httptest.NewRecorder()
		server.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, joinPath, bytes.NewReader(body)))
		var refused Refusal
		if recorder.Code == http.StatusOK || json.Unmarshal(recorder.Body.Bytes(), &refused) != nil || refused.Message == "" {
			t.Errorf("status %d, %s", recorder.Code, recorder.Body)
		}
	})
}

// FuzzBundle reads any bytes as a cluster's secrets.
func FuzzBundle(f *testing.F) {
	cluster, err := Found(noon, podRange, serverRange)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(cluster)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"ca":"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var read Cluster
		if err := json.Unmarshal(text, &read); err == nil && read.check() != nil {
			t.Error("an inconsistent cluster was accepted")
		}
	})
}
