package fleet

import (
	"time"

	"shoal/runtime/pods"
)

// claimKept is for how long a node may hold room for a pod that is not bound to it: a grant's own life, and the time until the store's
// news have come.
const claimKept = 13 * time.Second

// claimsCheck holds that no node keeps room for a pod that is not bound to it. A machine under a fault may: nobody can tell it.
type claimsCheck struct {
	since map[string]time.Time // by machine and pod
}

// look compares a picture of the store with what the machines' ledgers hold, by machine.
func (c *claimsCheck) look(r *run, p picture, ledgers map[string][]pods.Claim) {
	bound := map[string]bool{}
	for _, pod := range p.pods {
		bound[pod.Spec.NodeName+" "+string(pod.UID)] = true
	}
	before := c.since
	c.since = map[string]time.Time{}
	for machine, held := range ledgers {
		for _, claim := range held {
			id := machine + " " + string(claim.PodUID)
			if bound[id] {
				continue
			}
			begun, known := before[id]
			if !known {
				begun = p.at
			}
			if c.since[id] = begun; p.at.Sub(begun) > claimKept {
				r.blame("claims", "%s has held room for pod %s for %s, which is not bound to it", machine, claim.PodUID, p.at.Sub(begun))
			}
		}
	}
}

// ledgers are what the machines hold room for that nothing befalls now.
func (r *run) ledgers() map[string][]pods.Claim {
	ledgers := map[string][]pods.Claim{}
	for _, m := range r.fleet.Machines() {
		if inside, there := r.fleet.Inside(m); there && !r.troubled(m) {
			ledgers[m.Name] = inside.Claims(time.Now())
		}
	}
	return ledgers
}
