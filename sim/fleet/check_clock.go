package fleet

import "time"

// clockAhead is how far a revision may lie ahead of the true time: what a clock may be off before its peer stops stamping, and how far a
// machine that is only a little off may be off beyond that when it learns it.
const clockAhead = 3 * time.Second

// clocks holds that nobody stamps what is written with a time that has not come: whose clock is wrong must notice.
func (r *run) clocks(replicas []replicaView, now time.Time) {
	for _, replica := range replicas {
		if ahead := replica.view.Revision().Time().Sub(now); ahead > clockAhead {
			r.blame("clock", "shard %d is at a revision of %s", replica.shard, replica.view.Revision().Time().Sub(r.begun))
		}
	}
}
