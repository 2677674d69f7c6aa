package consensus_test

import (
	"errors"
	"testing"
	"time"

	"shoal/consensus"
)

// TestAWatchLeavesACutOffReplica lets nothing of raft reach a follower: its watches go on at the other peers, without gap or double. Then
// it is severed from them in all: a client's watch ends with an error, an internal one stays and goes on when the others are back.
func TestAWatchLeavesACutOffReplica(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	first := mustPut(t, hosts["a"], 1, "/w/start", "v")
	follower := "c"
	if status(hosts["c"], 1).Leading {
		follower = "b"
	}
	others := map[string]bool{"a": true, "b": true, "c": true}
	delete(others, follower)
	h := hosts[follower]
	ctx := within(t, 2*patience)
	client, err := h.Watch(ctx, 1, consensus.WatchOptions{Prefix: "/w/", After: first})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := h.Watch(ctx, 1, consensus.WatchOptions{Prefix: "/w/", After: first, Stay: true})
	if err != nil {
		t.Fatal(err)
	}
	write := func(key string) {
		for peer := range others {
			mustPut(t, hosts[peer], 1, "/w/"+key, "v")
			return
		}
	}
	expect := func(name string, w *consensus.Watch, key string) {
		t.Helper()
		select {
		case events, open := <-w.Events():
			if !open || len(events) != 1 || events[0].Key != "/w/"+key {
				t.Errorf("%s: %v, open %v, %v; want %s", name, events, open, w.Err(), key)
			}
		case <-time.After(patience):
			t.Errorf("%s does not see %s", name, key)
		}
	}
	write("before")
	expect("client", client, "before")
	expect("inner", inner, "before")

	// One-way: raft cannot reach the follower, calls from it to the others get through.
	for peer := range others {
		network.Silence(peer, follower, consensus.ServiceRaft)
	}
	write("behind its back")
	expect("client", client, "behind its back")
	expect("inner", inner, "behind its back")

	for peer := range others {
		network.Cut(follower, peer)
	}
	write("out of reach")
	select {
	case events, open := <-client.Events():
		if open || !errors.Is(client.Err(), consensus.ErrNoQuorum) {
			t.Errorf("client: %v, %v", events, client.Err())
		}
	case <-time.After(patience):
		t.Error("a client's watch on a cut-off peer is silent")
	}
	network.Heal()
	expect("inner", inner, "out of reach")
	write("after")
	expect("inner", inner, "after")
	mustGet(t, h, 1, "/w/after", "v")
}
