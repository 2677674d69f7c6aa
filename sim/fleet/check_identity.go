package fleet

import (
	"context"
	"time"
)

// identityEvery is how often the machines are looked at for two of one identity. A container takes longer to start and stop.
const identityEvery = 5 * time.Millisecond

// watchIdentities holds that no two containers of one identity run at once, on any machines, whatever the store knows.
func (r *run) watchIdentities(ctx context.Context) {
	for pause(ctx, identityEvery) == nil {
		where := map[string]string{}
		for _, m := range r.fleet.Machines() {
			for _, pod := range m.identities() {
				if other, twice := where[pod]; twice {
					r.blame("identity", "%s runs on %s and on %s", pod, other, m.Name)
				}
				where[pod] = m.Name
			}
		}
	}
}
