package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	connectTimeout  = 5 * time.Second
	exchangeTimeout = 60 * time.Second
)

// ErrForeignCluster means that the peer at an address belongs to another
// cluster than the token, or than the data folder.
var ErrForeignCluster = errors.New("belongs to another cluster")

// Joiner is a host that wants to become a peer.
type Joiner struct {
	Token   Token
	Pending *Pending
	Name    string
	Version string
	Zone    string
	// Addresses of this host, the advertised one first. Empty means the local
	// address of the connection to the cluster, which other peers reach too.
	Addresses []netip.Addr
	Port      int
	Now       func() time.Time // nil: time.Now
	Dial      Dial             // nil: TCP
}

// Joined is the outcome of a successful exchange.
type Joined struct {
	Peer *Peer
	// Members are gossip addresses, host:port, of peers to greet.
	Members []string
	// Advertise is the address that the cluster wrote down for this peer.
	Advertise netip.Addr
}

// Join asks the peers at the given addresses (host:port) one after the other
// and stops at the first that lets it in, or whose refusal would be every
// peer's. Its error is one sentence for the user. Nothing is stored before the
// whole exchange succeeded, except the peer's own keys.
func (j Joiner) Join(ctx context.Context, addresses []string) (*Joined, error) {
	if j.Now == nil {
		j.Now = time.Now
	}
	var failures []string
	for _, address := range addresses {
		joined, err := j.joinThrough(ctx, address)
		if err == nil {
			return joined, nil
		}
		var refused *Refusal
		if errors.As(err, &refused) && refused.Reason != ReasonUnavailable {
			return nil, fmt.Errorf("the cluster refused this host: %w", err)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("join: %w", context.Cause(ctx))
		}
		failures = append(failures, err.Error())
	}
	if len(failures) == 0 {
		return nil, errors.New("no address to join through: give that of any peer")
	}
	return nil, errors.New("cannot join: " + strings.Join(failures, "; "))
}

func (j Joiner) joinThrough(ctx context.Context, address string) (*Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	conn, err := dialPinned(ctx, j.Dial, address, j.Token.Pin)
	if errors.Is(err, ErrForeignCluster) {
		return nil, fmt.Errorf("the peer at %s %w than the token: check the address, or make a token on a peer of that cluster", address, ErrForeignCluster)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := pinnedClient(conn)
	if err := j.checkHello(ctx, client, conn, address); err != nil {
		return nil, err
	}
	request, err := j.request(conn)
	if err != nil {
		return nil, err
	}
	var response JoinResponse
	if err := call(ctx, client, http.MethodPost, address, joinPath, request, &response); err != nil {
		return nil, err
	}
	if response.Cluster == nil || response.Cluster.Pin() != j.Token.Pin {
		return nil, fmt.Errorf("the peer at %s answered with the secrets of another cluster", address)
	}
	leaf, err := x509.ParseCertificate(response.Certificate)
	if err != nil {
		return nil, fmt.Errorf("the peer at %s answered with an unreadable certificate: %w", address, err)
	}
	peer, err := j.Pending.Complete(j.Now(), response.Cluster, j.Name, leaf)
	if err != nil {
		return nil, err
	}
	return &Joined{Peer: peer, Members: response.Members, Advertise: request.Addresses[0]}, nil
}

// checkHello compares the clocks before the token's secret is told: a
// certificate's validity means nothing to a host that has the wrong date.
func (j Joiner) checkHello(ctx context.Context, client *http.Client, conn *tls.Conn, address string) error {
	var hello Hello
	if err := call(ctx, client, http.MethodGet, address, helloPath, nil, &hello); err != nil {
		return err
	}
	now := j.Now()
	if err := CheckClock(now, hello.Time); err != nil {
		return err
	}
	leaf := conn.ConnectionState().PeerCertificates[0]
	if now.After(leaf.NotAfter.Add(MaxClockDifference)) || now.Before(leaf.NotBefore.Add(-MaxClockDifference)) {
		return fmt.Errorf("the certificate of the peer at %s is valid from %s to %s, and it is %s now", address, stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now))
	}
	return nil
}

func (j Joiner) request(conn *tls.Conn) (JoinRequest, error) {
	csr, err := j.Pending.Request()
	if err != nil {
		return JoinRequest{}, err
	}
	addresses := j.Addresses
	if len(addresses) == 0 {
		local, err := netip.ParseAddrPort(conn.LocalAddr().String())
		if err != nil {
			return JoinRequest{}, fmt.Errorf("this host's own address is unknown, give it with --advertise: %w", err)
		}
		addresses = []netip.Addr{local.Addr().Unmap().WithZone("")}
	}
	return JoinRequest{
		TokenID: j.Token.ID, TokenSecret: j.Token.Secret, Request: csr, Name: j.Name, Version: j.Version, Zone: j.Zone,
		WireGuard: j.Pending.WireGuard.Public().String(), Time: j.Now(), Addresses: addresses, Port: j.Port,
	}, nil
}

// CheckAddress refuses an address whose peer belongs to another cluster than
// this data folder. An address where nobody answers is no error: a cluster may
// start all its peers at once. A nil dial is TCP.
func (p *Peer) CheckAddress(ctx context.Context, dial Dial, address string) error {
	conn, err := dialPinned(ctx, dial, address, p.Cluster.Pin())
	if errors.Is(err, ErrForeignCluster) {
		return fmt.Errorf("the peer at %s %w than this data folder (%s): choose another --data-dir, or start without addresses to resume", address, ErrForeignCluster, p.Cluster.ID)
	}
	if err == nil {
		_ = conn.Close()
	}
	return nil
}

// Dial connects to host:port.
type Dial func(ctx context.Context, address string) (net.Conn, error)

func (d Dial) connect(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if d != nil {
		return d(ctx, address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", address)
}

// dialPinned connects to the join service at an address and proves that it is
// a peer of the pinned cluster. The clock plays no part in it.
func dialPinned(ctx context.Context, dial Dial, address, pin string) (*tls.Conn, error) {
	raw, err := dial.connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("no peer answers at %s (%s): check the address, that a peer runs there, and that TCP port %s is open to this host", address, briefly(err), portOf(address))
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{JoinService},
		// The chain is checked against the pin instead of a host name: the
		// joiner has no CA yet, and a peer is its key, not its address.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.NegotiatedProtocol != JoinService {
				return errors.New("it does not speak the join protocol")
			}
			return checkPin(state.PeerCertificates, pin)
		},
	})
	handshake, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := conn.HandshakeContext(handshake); err != nil {
		_ = raw.Close()
		if errors.Is(err, ErrForeignCluster) {
			return nil, err
		}
		return nil, fmt.Errorf("what answers at %s is not a Shoal peer (%s): check the address and the port", address, briefly(err))
	}
	return conn, nil
}

// checkPin accepts a chain whose CA has the pinned key and whose leaf is a
// peer's certificate signed by that CA, at any moment of its validity.
func checkPin(chain []*x509.Certificate, pin string) error {
	for _, ca := range chain {
		if !ca.IsCA || PinOf(ca) != pin {
			continue
		}
		cluster := Cluster{ID: peerIDOf(ca.RawSubjectPublicKeyInfo), CA: ca}
		_, err := cluster.VerifyPeer(chain[0].NotAfter.Add(-time.Second), chain, x509.ExtKeyUsageServerAuth)
		return err
	}
	return ErrForeignCluster
}

// pinnedClient speaks HTTP over the one verified connection and never opens another.
func pinnedClient(conn *tls.Conn) *http.Client {
	unused := make(chan net.Conn, 1)
	unused <- conn
	return &http.Client{Transport: &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case c := <-unused:
				return c, nil
			default:
				return nil, errors.New("the peer closed the connection")
			}
		},
	}}
}

func call(ctx context.Context, client *http.Client, method, address, path string, body, result any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+address+path, content)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("the peer at %s went away in the middle of the join (%s): try again", address, briefly(err))
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, joinLimit))
	if err != nil {
		return fmt.Errorf("the peer at %s went away in the middle of the join (%s): try again", address, briefly(err))
	}
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, result); err != nil {
			return fmt.Errorf("the answer of the peer at %s is not readable: %w", address, err)
		}
		return nil
	}
	var refused Refusal
	if err := json.Unmarshal(text, &refused); err != nil || refused.Message == "" {
		return fmt.Errorf("the peer at %s answered with HTTP status %s", address, response.Status)
	}
	return &refused
}

// briefly is the last part of a network error's chain, without the addresses
// that our own sentence already names.
func briefly(err error) string {
	var errno syscall.Errno
	var name *net.DNSError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &name):
		return "unknown host name"
	case errors.Is(err, io.EOF):
		return "it closed the connection"
	}
	return err.Error()
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return port
}
