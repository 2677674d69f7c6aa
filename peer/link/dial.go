package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

var (
	// ErrNoService means that the peer is there but does not offer the
	// service, or not yet.
	ErrNoService = errors.New("the peer does not offer the service")
	// ErrWrongPeer means that another peer answers at the address: the one
	// dialled moved, and gossip has not told us yet.
	ErrWrongPeer = errors.New("another peer answers there")
)

// Dial connects to a service of a peer, found through Config.Resolve. The
// server is proved to be that very peer; the caller proves itself with its own
// certificate. In TLS 1.3 the server judges that certificate after the client's
// handshake is over, so a refusal shows at the first read.
func (l *Link) Dial(ctx context.Context, peerID, service string) (net.Conn, error) {
	service = canonical(service)
	address, err := l.config.Resolve(peerID)
	if err != nil {
		return nil, fmt.Errorf("dial %s of peer %s: %w", service, peerID, err)
	}
	conn, err := l.dial(ctx, address, service, peerID)
	if err != nil {
		return nil, fmt.Errorf("dial %s of peer %s at %s: %w", service, peerID, address, err)
	}
	return conn, nil
}

// DialAddress connects to a service at an address, whichever peer of the
// cluster answers. Gossip needs it: it knows addresses before it knows peers.
func (l *Link) DialAddress(ctx context.Context, address, service string) (*Conn, error) {
	service = canonical(service)
	conn, err := l.dial(ctx, address, service, "")
	if err != nil {
		return nil, fmt.Errorf("dial %s at %s: %w", service, address, err)
	}
	return conn, nil
}

// dial connects and proves the server; want is the peer it must be, or empty.
func (l *Link) dial(ctx context.Context, address, service, want string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.DialTimeout)
	defer cancel()
	raw, err := l.config.Connect(ctx, address)
	if err != nil {
		return nil, err
	}
	raw = wholeConn{raw}
	conn := &Conn{service: service}
	conn.Conn = tls.Client(raw, &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{service},
		GetClientCertificate: l.config.Identity.GetClientCertificate,
		// A peer is its key, not its address: the chain is verified below
		// against the cluster's CA and the peer's ID instead of a host name.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := l.verify(state.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if want != "" && id != want {
				return fmt.Errorf("%w: %s", ErrWrongPeer, id)
			}
			if state.NegotiatedProtocol != service {
				return ErrNoService
			}
			conn.peerID = id
			return nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		if isNoProtocol(err) {
			return nil, ErrNoService
		}
		return nil, err
	}
	return conn, raw.SetDeadline(time.Time{})
}

// isNoProtocol recognises the alert no_application_protocol (RFC 7301), which
// crypto/tls exposes only by its text.
func isNoProtocol(err error) bool {
	return strings.HasSuffix(err.Error(), "tls: no application protocol")
}
