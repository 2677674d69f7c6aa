package cli

import (
	"errors"
	"net"
	"net/http"
	"time"
)

// A peer that stops refuses handshakes for a moment before it closes its port. Nothing of a request has been sent by then, so it is sent
// again, until another peer is reached.
const (
	refusedRetries = 30
	refusedPause   = 100 * time.Millisecond
)

// retryRefused sends requests again whose connection was refused during the TLS handshake, after it has told who dials that this was so.
type retryRefused struct {
	next    http.RoundTripper
	refused func()
}

// RoundTrip implements http.RoundTripper.
func (t retryRefused) RoundTrip(r *http.Request) (*http.Response, error) {
	for tries := 0; ; tries++ {
		response, err := t.next.RoundTrip(r)
		if err == nil || !handshakeRefused(err) || tries == refusedRetries || r.Body != nil && r.GetBody == nil {
			return response, err
		}
		t.refused()
		select {
		case <-r.Context().Done():
			return nil, err
		case <-time.After(refusedPause):
		}
		if r.GetBody != nil {
			r = r.Clone(r.Context())
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// handshakeRefused tells whether the other side ended the handshake with the alert that a peer which stops answers with.
func handshakeRefused(err error) bool {
	var refused *net.OpError
	return errors.As(err, &refused) && refused.Op == "remote error" && refused.Err.Error() == "tls: internal error"
}
