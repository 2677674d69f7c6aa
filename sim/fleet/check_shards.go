package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
)

// shardsWork says which shard takes no writes through some machine, and which machine keeps a replica that its shard knows nothing of;
// nil when all is well.
func (r *run) shardsWork(ctx context.Context, machines []*Machine) error {
	groups := r.fleet.groups()
	for _, m := range machines {
		inside, there := r.fleet.Inside(m)
		if !there {
			return fmt.Errorf("%s does not serve", m.Name)
		}
		for _, status := range inside.Store.Status() {
			group, led := groups[status.Shard]
			switch {
			case !led:
				return fmt.Errorf("shard %d has no leader", status.Shard)
			case status.Trouble != "" || status.Quarantine != "":
				return fmt.Errorf("%s cannot use its replica of shard %d: %s%s", m.Name, status.Shard, status.Trouble, status.Quarantine)
			}
			if err := zombie(m.Name, status, group); err != nil {
				return err
			}
			if err := r.write(ctx, inside.Store, status.Shard); err != nil {
				return fmt.Errorf("shard %d through %s: %w", status.Shard, m.Name, err)
			}
		}
	}
	return nil
}

// zombie says that a replica runs that is none of its shard's.
func zombie(machine string, status, group consensus.ShardStatus) error {
	if !status.Local || slices.ContainsFunc(group.Members, func(m consensus.Member) bool { return m.ReplicaID == status.ReplicaID }) {
		return nil
	}
	return fmt.Errorf("zombie: %s runs replica %d of shard %d, whose members are %v", machine, status.ReplicaID, status.Shard, group.Members)
}

// write puts an entry without changes into a shard's log.
func (r *run) write(ctx context.Context, host *consensus.Host, shard uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := host.Propose(ctx, shard, store.Transaction{})
	return err
}
