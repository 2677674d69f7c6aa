package peer

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"
)

// TestAskQuarantined asks a peer with quarantined replicas, one without, one of a version that does not know the question, one that hangs,
// one that talks nonsense and one that is not there.
func TestAskQuarantined(t *testing.T) {
	serve := func(handler http.Handler) string {
		mux := http.NewServeMux()
		mux.Handle("POST "+quarantinePath, handler)
		server := httptest.NewServer(mux)
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	unknowing := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(unknowing.Close)
	over := make(chan struct{})
	addresses := map[string]string{
		"broken": serve(quarantineHandler(func() map[uint64]string { return map[uint64]string{0: "it broke", 7: "it broke too"} })),
		"second": serve(quarantineHandler(func() map[uint64]string { return map[uint64]string{7: "so did this"} })),
		"well":   serve(quarantineHandler(func() map[uint64]string { return nil })),
		"older":  unknowing.Listener.Addr().String(),
		"hangs":  serve(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over })),
		"babble": serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"-1":`)) })),
	}
	t.Cleanup(func() { close(over) }) // before the servers are closed, which wait for their requests
	nodes := newNodeClient(func(ctx context.Context, peer, service string) (net.Conn, error) {
		if addresses[peer] == "" || service != serviceNode {
			return nil, errors.New("nobody is there")
		}
		return new(net.Dialer).DialContext(ctx, "tcp", addresses[peer])
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	got := askQuarantined(ctx, []string{"broken", "second", "well", "older", "hangs", "babble", "gone"}, nodes)
	want := map[uint64]map[string]string{0: {"broken": "it broke"}, 7: {"broken": "it broke too", "second": "so did this"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
