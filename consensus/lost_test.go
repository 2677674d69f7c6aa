package consensus_test

import (
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
)

// TestWhatWaitsForALostPeerGoesElsewhere lets a peer without a replica watch and write while those that it is connected with fall silent
// without a word, as machines do that lose their power: as soon as they are known to be lost, both go on over new connections.
func TestWhatWaitsForALostPeerGoesElsewhere(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	h := network.Open(t, "d", t.TempDir(), func(c *consensus.Config) { c.DataShards = 1 })
	first := mustPut(t, h, 1, "/w/start", "v")
	watch, err := h.Watch(within(t, 2*patience), 1, consensus.WatchOptions{Prefix: "/w/", After: first})
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, hosts["a"], 1, "/w/before", "v")
	if events := <-watch.Events(); len(events) != 1 || events[0].Key != "/w/before" {
		t.Fatalf("sees %v", events)
	}
	network.Stall("d")
	written := make(chan error, 1)
	go func() {
		_, err := h.Propose(within(t, 2*patience), 1, store.Transaction{Ops: []store.Op{{Key: "/w/after", Value: []byte("v")}}})
		written <- err
	}()
	select {
	case events := <-watch.Events():
		t.Fatalf("sees %v over a dead connection", events)
	case err := <-written:
		t.Fatalf("a write over a dead connection: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	begun := time.Now()
	for peer := range hosts {
		h.Lost(peer)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if events := <-watch.Events(); len(events) != 1 || events[0].Key != "/w/after" {
		t.Errorf("sees %v", events)
	}
	// An attempt ends by itself after 2.5 s, and a connection after 13.
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("that took %s", took)
	}
}
