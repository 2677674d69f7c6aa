package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// forwarder is a TCP port on the host's loopback whose connections go on from inside a namespace.
type forwarder struct {
	listener net.Listener
	dial     func(ctx context.Context) (net.Conn, error)
	open     sync.WaitGroup
}

// newForwarder listens on a loopback address ("127.0.0.1:0" for any port).
func newForwarder(address string, dial func(ctx context.Context) (net.Conn, error)) (*forwarder, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening on the host's loopback: %w", err)
	}
	f := &forwarder{listener: listener, dial: dial}
	go f.serve()
	return f, nil
}

func (f *forwarder) address() string { return f.listener.Addr().String() }

func (f *forwarder) serve() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.open.Add(1)
		go func() {
			defer f.open.Done()
			f.carry(conn)
		}()
	}
}

// carry copies both ways until either side ends; a half-closed connection stays open in the other direction.
func (f *forwarder) carry(near net.Conn) {
	defer near.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	far, err := f.dial(ctx)
	cancel()
	if err != nil {
		// The client sees a closed connection, as from a port where nobody answers.
		return
	}
	defer far.Close()
	done := make(chan struct{})
	go func() {
		copyHalf(far, near)
		close(done)
	}()
	copyHalf(near, far)
	<-done
}

func copyHalf(to, from net.Conn) {
	// Either side may go at any time; there is nobody to tell.
	_, _ = io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = to.Close()
}

func (f *forwarder) close() error { return f.listener.Close() }

// get fetches a URL from inside the peer's namespace and returns the status code. The certificate is not checked: what is asked for is
// public, and a lab has no one in the middle.
func (p *Peer) get(ctx context.Context, url string) (int, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext:       p.host.dial,
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}
