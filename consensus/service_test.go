package consensus_test

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
)

// TestGarbageFromAPeerHurtsNobody writes bytes of all kinds to both services of a host, as a peer that is in its right to dial but not in
// its right mind. The host serves on, and no memory is taken for what was only claimed.
func TestGarbageFromAPeerHurtsNobody(t *testing.T) {
	network := consensustest.NewNetwork()
	h := network.Open(t, "a", t.TempDir(), nil)
	consensustest.Found(t, h)
	mustPut(t, h, 1, "k", "v")
	// A gRPC client's preface, so that what follows is taken for frames of HTTP/2.
	preface := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	rapid.Check(t, func(t *rapid.T) {
		service := rapid.SampledFrom([]string{consensus.ServiceRaft, consensus.ServiceStore}).Draw(t, "service")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := network.Dial(ctx, "b", "a", service)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		var bytes []byte
		if service == consensus.ServiceStore && rapid.Bool().Draw(t, "preface") {
			bytes = append(bytes, preface...)
		}
		if service == consensus.ServiceRaft && rapid.Bool().Draw(t, "a frame") {
			bytes = append(bytes, rapid.SampledFrom([]byte{1, 2, 3}).Draw(t, "kind"))
			bytes = append(bytes, rapid.SampledFrom([][]byte{{0, 0, 0, 9}, {0, 0, 1, 0}, {255, 255, 255, 255}, {4, 0, 0, 0}}).Draw(t, "length")...)
		}
		bytes = append(bytes, rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(t, "bytes")...)
		_, _ = conn.Write(bytes) //nolint:errcheck // the host may hang up at any time
	})
	mustPut(t, h, 1, "k", "w")
	mustGet(t, h, 1, "k", "w")
	if err := h.Failed(within(t, 10*time.Millisecond)); err != nil {
		t.Errorf("the host failed: %v", err)
	}
}

// FuzzCallsOfPeers answers calls of any kind.
func FuzzCallsOfPeers(f *testing.F) {
	h := consensustest.NewHost(f)
	for _, command := range [][]byte{nil, store.AppendTransaction(nil, put("k", "v")), []byte("garbage")} {
		seed, err := consensus.EncodedCall(1, command)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		consensus.Answer(ctx, h, b)
		if err := h.Failed(canceled()); err != nil {
			t.Fatal(err)
		}
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
