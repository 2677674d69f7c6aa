package fleet

import (
	"context"
	"fmt"
	"hash/crc64"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
)

// replicasEvery is how often the replicas are compared.
const replicasEvery = 2 * time.Second

// replicasKept is how long states are remembered for replicas that lag behind.
const replicasKept = time.Minute

var crcTable = crc64.MakeTable(crc64.ECMA)

// replicasCheck holds that replicas of one shard that have come equally far are equal, byte for byte: keys, history and remembered requests.
type replicasCheck struct {
	states map[replicaAt]replicaState
	done   map[string]store.Revision // by machine and shard: what was compared last
}

type replicaAt struct {
	shard    uint64
	revision store.Revision
}

type replicaState struct {
	sum     uint64
	machine string
	seen    time.Time
}

// replicaView is one replica's state at a moment.
type replicaView struct {
	machine string
	shard   uint64
	view    consensus.View
}

// watchReplicas compares the replicas until ctx ends.
func (r *run) watchReplicas(ctx context.Context) {
	check := replicasCheck{states: map[replicaAt]replicaState{}, done: map[string]store.Revision{}}
	for pause(ctx, replicasEvery) == nil {
		replicas := r.fleet.replicas()
		check.compare(r, replicas, time.Now())
		r.clocks(replicas, time.Now())
	}
}

func (c *replicasCheck) compare(r *run, replicas []replicaView, now time.Time) {
	count := map[replicaAt]int{}
	for _, replica := range replicas {
		count[replicaAt{replica.shard, replica.view.Revision()}]++
	}
	for _, replica := range replicas {
		at := replicaAt{replica.shard, replica.view.Revision()}
		known, ok := c.states[at]
		if !ok && count[at] < 2 {
			continue // nobody to compare it with
		}
		id := fmt.Sprintf("%s %d", replica.machine, replica.shard)
		if c.done[id] == at.revision {
			continue
		}
		c.done[id] = at.revision
		sum := checksum(replica.view)
		if !ok {
			c.states[at] = replicaState{sum, replica.machine, now}
			continue
		}
		r.compared.Add(1)
		if sum != known.sum {
			r.blame("replicas", "shard %d at %d is not the same on %s and on %s", at.shard, at.revision, known.machine, replica.machine)
		}
	}
	for at, state := range c.states {
		if now.Sub(state.seen) > replicasKept {
			delete(c.states, at)
		}
	}
}

// checksum is of everything that a replica would put into a snapshot.
func checksum(view consensus.View) uint64 {
	sum := crc64.New(crcTable)
	if err := view.WriteSnapshot(sum); err != nil {
		panic(err) // a hash never fails
	}
	return sum.Sum64()
}

// replicas are all that work now.
func (f *Fleet) replicas() []replicaView {
	var all []replicaView
	for _, m := range f.Machines() {
		inside, there := f.Inside(m)
		if !there {
			continue
		}
		for _, shard := range inside.Store.Shards() {
			if view, here := inside.Store.Local(shard); here {
				all = append(all, replicaView{m.Name, shard, view})
			}
		}
	}
	return all
}
