package consensus_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"shoal/consensus"
)

// TestWhereAllAgreesWithWhere: with replicas and without, and what nobody answers for is left out.
func TestWhereAllAgreesWithWhere(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	hosts["d"] = network.Open(t, "d", t.TempDir(), func(c *consensus.Config) { c.DataShards = 1 })
	eventually(t, "d has read which shards there are", func() error {
		if !hosts["d"].ShardsRead() {
			return errors.New("it knows those only that others named")
		}
		return nil
	})
	mustPut(t, hosts["d"], 1, "n", "0") // it knows the way then
	for name, h := range hosts {
		all := h.WhereAll(within(t, patience))
		if len(all) != 2 {
			t.Errorf("%s knows of %d shards, want 2", name, len(all))
		}
		for shard, there := range all {
			want, err := h.Where(within(t, patience), shard)
			if err != nil || there.Leader != want.Leader || fmt.Sprint(there.Members) != fmt.Sprint(want.Members) {
				t.Errorf("%s: shard %d is at %v, %v; Where says %v, %v (%v)", name, shard, there.Leader, there.Members, want.Leader, want.Members, err)
			}
		}
	}
	for _, other := range []string{"a", "b", "c"} {
		network.Cut("d", other)
	}
	if all := hosts["d"].WhereAll(within(t, 300*time.Millisecond)); len(all) != 0 {
		t.Errorf("cut off, d answers %v", all)
	}
}

// TestAHearsayLeaderIsForgotten: Leader is asked once and remembered, until somebody says that it is not true.
func TestAHearsayLeaderIsForgotten(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	d := network.Open(t, "d", t.TempDir(), func(c *consensus.Config) { c.DataShards = 1 })
	first, err := d.Leader(within(t, patience), 1)
	if err != nil || hosts[first] == nil || !hosts[first].Leads(1) {
		t.Fatalf("the leader is %q, %v", first, err)
	}
	next := map[string]string{"a": "b", "b": "c", "c": "a"}[first]
	if err := hosts[first].TransferLeadership(within(t, patience), 1, next); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is handed over", func() error {
		if !hosts[next].Leads(1) {
			return fmt.Errorf("%s does not lead yet", next)
		}
		return nil
	})
	d.Misled(1, first)
	if now, err := d.Leader(within(t, patience), 1); err != nil || now != next {
		t.Errorf("the leader is %q, %v; want %q", now, err, next)
	}
}
