package fleet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"shoal/consensus"
)

// TestARestartBeforeTheMetaShard: a peer comes back while nobody can tell it which shards there are, but for those that it has replicas of,
// and they have a majority. What its predecessor left running belongs to the others as well, and must run on.
func TestARestartBeforeTheMetaShard(t *testing.T) {
	fault := Fault{
		Name:     "restart before the meta shard",
		machines: func(all []*Machine) []*Machine { return all },
		begin: func(f *Fleet, _ []*Machine) {
			early, late, err := apartFromMeta(f)
			if err != nil {
				t.Error(err)
				return
			}
			for _, m := range append(late, early) {
				f.Kill(m)
			}
			f.Start(early)
		},
		end: func(f *Fleet, all []*Machine) {
			for _, m := range all {
				if !f.Running(m) {
					f.Start(m)
				}
			}
		},
	}
	play(t, Plan{
		Seed: 1, Peers: 7, Workload: Workload{Namespaces: 4, Deployment: 7},
		Faults: []Fault{fault}, For: time.Second, Settle: time.Minute, Users: Users{MinPerMinute: 60},
	})
}

// apartFromMeta finds a machine that has a data shard whose majority is on other machines than those of the meta shard, which are the rest.
func apartFromMeta(f *Fleet) (m *Machine, meta []*Machine, err error) {
	voters := f.voters()
	meta = voters[consensus.MetaShard]
	for _, all := range voters {
		others := slices.DeleteFunc(slices.Clone(all), func(m *Machine) bool { return slices.Contains(meta, m) })
		if 2*len(others) > len(all) {
			return others[0], meta, nil
		}
	}
	return nil, nil, fmt.Errorf("every shard's majority needs one of %s", namesOf(meta))
}

// voters are the machines that vote, by shard.
func (f *Fleet) voters() map[uint64][]*Machine {
	voters := map[uint64][]*Machine{}
	for shard, group := range f.groups() {
		for _, m := range f.Machines() {
			if slices.ContainsFunc(group.Members, func(member consensus.Member) bool { return member.Voter && member.Peer == m.ID() }) {
				voters[shard] = append(voters[shard], m)
			}
		}
	}
	return voters
}
