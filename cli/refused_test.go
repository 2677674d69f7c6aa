package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// door is two peers of one cluster, as a kubeconfig lists them: the first does not let anybody in any more, the second answers.
type door struct {
	knocked, answered atomic.Int64
	bodies            chan string
	url               string // the first's
	certificate       tls.Certificate
}

// openDoor starts both, with what the first does to a connection, and makes a client as the verbs do.
func openDoor(t *testing.T, first func(*door, net.Conn)) (*door, *http.Client) {
	t.Helper()
	d := &door{bodies: make(chan string, 8)}
	second := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		d.answered.Add(1)
		d.bodies <- string(body)
	}))
	t.Cleanup(second.Close)
	d.certificate = second.TLS.Certificates[0]
	stopping, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stopping.Close() })
	go func() {
		for {
			conn, err := stopping.Accept()
			if err != nil {
				return
			}
			d.knocked.Add(1)
			go func() {
				first(d, conn)
				conn.Close()
			}()
		}
	}()
	d.url = "https://" + stopping.Addr().String()
	peers := &anyPeer{addresses: []string{stopping.Addr().String(), second.Listener.Addr().String()}}
	transport := second.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = peers.dial
	return d, &http.Client{Transport: retryRefused{transport, peers.refused}}
}

// refuseHandshake is what a peer does that stops: an error of crypto/tls's callback is the alert "internal error".
func refuseHandshake(_ *door, conn net.Conn) {
	_ = tls.Server(conn, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return nil, errors.New("this peer stops")
	}}).Handshake()
}

// TestRefusedHandshakesGoToAnotherPeer: each request reaches it once, with its whole body, and the peer that stops is left alone as long as
// there is another, although its port is open.
func TestRefusedHandshakesGoToAnotherPeer(t *testing.T) {
	d, client := openDoor(t, refuseHandshake)
	for range 3 {
		response, err := client.Post(d.url, "text/plain", strings.NewReader("all of it"))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if body := <-d.bodies; body != "all of it" {
			t.Errorf("what arrives is %q", body)
		}
		client.CloseIdleConnections()
	}
	if d.knocked.Load() != 1 || d.answered.Load() != 3 {
		t.Errorf("refused %d times, answered %d times", d.knocked.Load(), d.answered.Load())
	}
}

// TestOtherFailuresAreNotTriedAgain: whether the request was taken in is not known then, or another peer would answer no better.
func TestOtherFailuresAreNotTriedAgain(t *testing.T) {
	for name, first := range map[string]func(*door, net.Conn){
		"closed before the handshake": func(*door, net.Conn) {},
		"closed after the request": func(d *door, conn net.Conn) {
			_, _ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{d.certificate}}).Read(make([]byte, 4096))
		},
		"another alert": func(_ *door, conn net.Conn) {
			_ = tls.Server(conn, &tls.Config{MaxVersion: tls.VersionTLS10}).Handshake()
		},
		"no TLS": func(_ *door, conn net.Conn) { _, _ = conn.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			d, client := openDoor(t, first)
			response, err := client.Post(d.url, "text/plain", strings.NewReader("once"))
			if err == nil {
				response.Body.Close()
				t.Error("it was answered")
			}
			if d.knocked.Load() != 1 || d.answered.Load() != 0 {
				t.Errorf("tried %d times, answered %d times: %v", d.knocked.Load(), d.answered.Load(), err)
			}
		})
	}
}

// TestRetriesEnd with the request, and where the body cannot be sent again.
func TestRetriesEnd(t *testing.T) {
	refusal := &net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}
	var tries atomic.Int64
	transport := retryRefused{roundTripper(func(*http.Request) (*http.Response, error) {
		tries.Add(1)
		return nil, refusal
	}), func() {}}
	ctx, cancel := context.WithTimeout(t.Context(), refusedPause/2)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://example.com/", nil)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := transport.RoundTrip(request); !errors.Is(err, refusal) || tries.Load() != 1 {
		t.Errorf("with a request that has ended: %v after %d tries in %s", err, tries.Load(), time.Since(begun))
	}
	tries.Store(0)
	request, err = http.NewRequestWithContext(t.Context(), http.MethodPost, "https://example.com/", io.NopCloser(bytes.NewReader([]byte("a stream"))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := transport.RoundTrip(request); !errors.Is(err, refusal) || tries.Load() != 1 {
		t.Errorf("with a body that is gone once read: %v after %d tries", err, tries.Load())
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
