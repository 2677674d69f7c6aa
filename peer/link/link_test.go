package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"shoal/peer/identity"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func found(t *testing.T) *identity.Cluster {
	t.Helper()
	cluster, err := identity.Found(time.Now().AddDate(-1, 0, 0), netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("10.96.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	return cluster
}

func member(t *testing.T, cluster *identity.Cluster, name string, now time.Time) *identity.Peer {
	t.Helper()
	pending, err := identity.Prepare(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	self, err := pending.Found(now, cluster, name, []netip.Addr{loopback})
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// book is the gossip of these tests: where each peer is.
type book struct {
	mu        sync.Mutex
	addresses map[string]string
}

func (b *book) resolve(id string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if address, ok := b.addresses[id]; ok {
		return address, nil
	}
	return "", fmt.Errorf("peer %s is not known", id)
}

func (b *book) set(id, address string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addresses[id] = address
}

func open(t *testing.T, self *identity.Peer, where *book, change func(*Config)) *Link {
	t.Helper()
	config := Config{Identity: self, Listen: "127.0.0.1", Resolve: where.resolve, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&config)
	}
	l, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	where.set(self.ID, l.Addr().String())
	return l
}

// pair is two peers of one cluster.
func pair(t *testing.T) (a, b *Link, where *book, cluster *identity.Cluster) {
	t.Helper()
	cluster = found(t)
	where = &book{addresses: map[string]string{}}
	a = open(t, member(t, cluster, "a", time.Now()), where, nil)
	b = open(t, member(t, cluster, "b", time.Now()), where, nil)
	return a, b, where, cluster
}

// echo answers every line with the caller's peer ID before it.
func echo(t *testing.T, l *Link, service string) net.Listener {
	t.Helper()
	listener, err := l.Listen(service)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				caller := conn.(interface{ PeerID() string }).PeerID()
				lines := bufio.NewScanner(conn)
				for lines.Scan() {
					if _, err := fmt.Fprintf(conn, "%s %s\n", caller, lines.Text()); err != nil {
						return
					}
				}
			}()
		}
	}()
	return listener
}

func ask(conn net.Conn, line string) (string, error) {
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

func TestServicesAreKeptApartAndKnowTheCaller(t *testing.T) {
	a, b, _, _ := pair(t)
	raft := echo(t, b, "raft")
	echo(t, b, "shoal/store")
	for _, service := range []string{"shoal/raft", "store"} {
		conn, err := a.Dial(t.Context(), b.config.Identity.ID, service)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got, err := ask(conn, service); err != nil || got != a.config.Identity.ID+" "+service {
			t.Errorf("%v: %q", err, got)
		}
		if id := conn.(*Conn).PeerID(); id != b.config.Identity.ID {
			t.Errorf("dialled %s, reached %s", b.config.Identity.ID, id)
		}
	}
	if _, err := b.Listen("raft"); err == nil {
		t.Error("a service was offered twice")
	}
	if _, err := a.Dial(t.Context(), b.config.Identity.ID, "node"); !errors.Is(err, ErrNoService) {
		t.Errorf("a service nobody offers: %v", err)
	}
	if err := raft.Close(); err != nil {
		t.Error(err)
	}
	if _, err := a.Dial(t.Context(), b.config.Identity.ID, "raft"); !errors.Is(err, ErrNoService) {
		t.Errorf("a withdrawn service: %v", err)
	}
	echo(t, b, "raft")
	if conn, err := a.DialAddress(t.Context(), b.Addr().String(), "raft"); err != nil {
		t.Errorf("an offered again service: %v", err)
	} else {
		_ = conn.Close()
	}
}

func TestDialProvesThePeer(t *testing.T) {
	a, b, where, cluster := pair(t)
	c := open(t, member(t, cluster, "c", time.Now()), where, nil)
	echo(t, c, "raft")
	where.set(b.config.Identity.ID, c.Addr().String()) // gossip is behind: c took b's address
	if _, err := a.Dial(t.Context(), b.config.Identity.ID, "raft"); !errors.Is(err, ErrWrongPeer) || !strings.Contains(err.Error(), c.config.Identity.ID) {
		t.Errorf("%v", err)
	}
	if _, err := a.Dial(t.Context(), "0000000000000000", "raft"); err == nil || !strings.Contains(err.Error(), "is not known") {
		t.Errorf("an unknown peer: %v", err)
	}
}

// Every certificate but a valid one of a peer of this cluster is turned away,
// in both directions.
func TestForeignCertificatesAreRefused(t *testing.T) {
	a, b, where, cluster := pair(t)
	echo(t, b, "raft")
	other := found(t)
	stranger := member(t, other, "a", time.Now())
	old := member(t, cluster, "old", time.Now().Add(-identity.PeerCertificateLife-time.Hour))
	adminCert, adminKey, err := cluster.Admin(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	admin, err := tls.X509KeyPair(adminCert, adminKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, certificate := range map[string]*tls.Certificate{
		"none": nil, "another cluster's": stranger.Certificate(), "expired": old.Certificate(), "an administrator's": &admin,
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := rawAsk(b.Addr().String(), "shoal/raft", certificate); err == nil {
				t.Errorf("answered %q", got)
			}
		})
	}
	if got, err := rawAsk(b.Addr().String(), "shoal/raft", a.config.Identity.Certificate()); err != nil || !strings.HasPrefix(got, a.config.Identity.ID) {
		t.Errorf("the control with a good certificate: %v, %q", err, got)
	}
	// The other direction: a peer of another cluster listens at a's address.
	foreign := open(t, stranger, where, nil)
	echo(t, foreign, "raft")
	where.set(a.config.Identity.ID, foreign.Addr().String())
	if _, err := b.Dial(t.Context(), a.config.Identity.ID, "raft"); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("dialled a peer of another cluster: %v", err)
	}
}

// TestAClockThatIsBehind: a peer whose clock lags finds the others' certificates not valid yet. It must speak to them all the same, or
// nobody could tell it so.
func TestAClockThatIsBehind(t *testing.T) {
	cluster, where := found(t), &book{addresses: map[string]string{}}
	late := open(t, member(t, cluster, "late", time.Now()), where, nil)
	others := open(t, member(t, cluster, "others", time.Now().Add(20*time.Hour)), where, nil)
	echo(t, late, "raft")
	echo(t, others, "raft")
	for _, way := range [][2]*Link{{late, others}, {others, late}} {
		conn, err := way[0].Dial(t.Context(), way[1].config.Identity.ID, "raft")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ask(conn, "hello"); err != nil || !strings.HasPrefix(got, way[0].config.Identity.ID) {
			t.Errorf("%q, %v", got, err)
		}
		conn.Close()
	}
}

// rawAsk speaks to a port without checking the server.
func rawAsk(address, service string, certificate *tls.Certificate) (string, error) {
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{service}}
	if certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(conn, "hello")
}

func TestRemovedPeersAreRefused(t *testing.T) {
	cluster := found(t)
	where := &book{addresses: map[string]string{}}
	a := open(t, member(t, cluster, "a", time.Now()), where, nil)
	removed := a.config.Identity.ID
	b := open(t, member(t, cluster, "b", time.Now()), where, func(c *Config) {
		c.Refuse = func(id string) error {
			if id == removed {
				return errors.New("it was removed from the cluster")
			}
			return nil
		}
	})
	echo(t, a, "raft")
	echo(t, b, "raft")
	if _, err := rawAsk(b.Addr().String(), "shoal/raft", a.config.Identity.Certificate()); err == nil {
		t.Error("a removed peer got in")
	}
	if _, err := b.Dial(t.Context(), removed, "raft"); err == nil || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("dialled a removed peer: %v", err)
	}
}

func TestTLS12IsRefused(t *testing.T) {
	a, _, _, _ := pair(t)
	_, err := tls.Dial("tcp", a.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestJoinNeedsNoCertificate(t *testing.T) {
	a, _, _, _ := pair(t)
	echo(t, a, identity.JoinService)
	if got, err := rawAsk(a.Addr().String(), identity.JoinService, nil); err != nil || got != "hello" {
		t.Errorf("%v: %q", err, got)
	}
}

// serveAPI runs an http.Server behind the link, as peer/api does.
func serveAPI(t *testing.T, l *Link) {
	t.Helper()
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user := "anonymous"
		if len(r.TLS.PeerCertificates) > 0 {
			user = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %s", r.Proto, user)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l.API()) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

func TestTheAPISharesThePort(t *testing.T) {
	a, b, _, cluster := pair(t)
	serveAPI(t, a)
	echo(t, a, "raft")
	certPEM, keyPEM, err := cluster.Admin(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	admin, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	stranger := *member(t, found(t), "x", time.Now()).Certificate()
	get := func(http2 bool, certificates ...tls.Certificate) (string, error) {
		transport := &http.Transport{ForceAttemptHTTP2: http2, TLSClientConfig: &tls.Config{RootCAs: cluster.CAPool()}}
		if len(certificates) > 0 {
			transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificates[0], nil }
		}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("https://" + a.Addr().String())
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}
	for _, c := range []struct {
		http2 bool
		with  []tls.Certificate
		want  string
	}{
		{true, nil, "HTTP/2.0 anonymous"},
		{false, nil, "HTTP/1.1 anonymous"},
		{true, []tls.Certificate{admin}, "HTTP/2.0 kubernetes-admin"},
		{true, []tls.Certificate{*b.config.Identity.Certificate()}, "HTTP/2.0 system:node:b"},
	} {
		if got, err := get(c.http2, c.with...); err != nil || got != c.want {
			t.Errorf("%v: %q, want %q", err, got, c.want)
		}
	}
	if got, err := get(true, stranger); err == nil {
		t.Errorf("another cluster's certificate got %q", got)
	}
	if got, err := rawAsk(a.Addr().String(), "shoal/raft", b.config.Identity.Certificate()); err != nil || got == "" {
		t.Errorf("the service beside the API: %v", err)
	}
}

func TestRenewedCertificateIsServed(t *testing.T) {
	a, _, _, _ := pair(t)
	serial := func() string {
		conn, err := tls.Dial("tcp", a.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	if err := a.config.Identity.Renew(time.Now(), []netip.Addr{loopback}); err != nil {
		t.Fatal(err)
	}
	if serial() == before {
		t.Error("still the old certificate")
	}
}

func TestPortInUse(t *testing.T) {
	a, b, _, _ := pair(t)
	port := a.Addr().(*net.TCPAddr).Port
	_, err := Open(Config{Identity: b.config.Identity, Listen: "127.0.0.1", Port: port})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("TCP port %d is in use", port)) || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("%v", err)
	}
	if _, err := Open(Config{Identity: b.config.Identity, Listen: "192.0.2.1"}); err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("an address of another host: %v", err)
	}
}
