package model

import (
	"testing"
	"time"
)

// TestAShardAheadOfTimeTakesWrites lets most clocks be wrong together for a while, so that revisions lie ten minutes ahead, and then writes more
// than a shard remembers requests. Whoever stamps below what the shard has forgotten must hear of it and stamp again, and not write in vain
// until time has caught up (drawn seed 990000233).
func TestAShardAheadOfTimeTakesWrites(t *testing.T) {
	t.Parallel()
	cfg := Config{
		Seed: 1, Nodes: 3, Allocatable: list("4", "8Gi", "110"), Length: 130 * time.Second, ReadyWithin: 30 * time.Second,
		Workloads: []Workload{{Name: "web", Replicas: 6, Requests: list("250m", "128Mi", "")}},
		Faults: []Fault{
			{At: 10 * time.Second, Kind: Jump, Target: "n1,n2", By: 10 * time.Minute, For: 20 * time.Second},
			{At: 40 * time.Second, Kind: Overload, Count: 20, By: 20 * time.Millisecond, For: 30 * time.Second},
			{At: 80 * time.Second, Kind: Crash, Target: "n3", For: 20 * time.Second},
		},
	}
	m, err := newModel(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for len(m.steps) > 0 && m.steps[0].at <= cfg.Length {
		m.next()
	}
	m.finish()
	for _, violation := range m.outcome.Violations {
		t.Error(violation)
	}
	if ahead := m.shards[1].leads.state.View().Revision().Time().Sub(m.time()); ahead < time.Minute {
		t.Errorf("the shard is %s ahead, which proves nothing", ahead)
	}
}
