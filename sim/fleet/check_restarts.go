package fleet

import (
	"context"
	"time"
)

// watchRestarts holds that no container is restarted because something of the control plane failed: only a machine that lost its power,
// and pods that must be fenced, have reasons.
func (r *run) watchRestarts(ctx context.Context) {
	for pause(ctx, time.Second) == nil {
		for _, m := range r.fleet.Machines() {
			for _, name := range m.restarted() {
				if !r.excused(m) {
					r.blame("restarts", "%s was restarted on %s, which has never lost its power", name, m.Name)
				}
			}
		}
	}
}
