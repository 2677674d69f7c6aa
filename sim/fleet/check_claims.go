package fleet

import "time"

// claimKept is for how long a node may hold room for a pod that is not bound to it: a grant's own life, and the time until the store's
// news have come.
const claimKept = 13 * time.Second

// claimsCheck holds that no node keeps room for a pod that is not bound to it. A machine under a fault may: nobody can tell it.
type claimsCheck struct {
	since map[string]time.Time // by machine and pod
}

func (c *claimsCheck) look(r *run, p picture) {
	bound := map[string]bool{}
	for _, pod := range p.pods {
		bound[pod.Spec.NodeName+" "+string(pod.UID)] = true
	}
	before := c.since
	c.since = map[string]time.Time{}
	for _, m := range r.fleet.Machines() {
		inside, there := r.fleet.Inside(m)
		if !there || r.troubled(m) {
			continue
		}
		for _, claim := range inside.Claims(time.Now()) {
			id := m.Name + " " + string(claim.PodUID)
			if bound[id] {
				continue
			}
			begun, known := before[id]
			if !known {
				begun = p.at
			}
			if c.since[id] = begun; p.at.Sub(begun) > claimKept {
				r.blame("claims", "%s has held room for pod %s for %s, which is not bound to it", m.Name, claim.PodUID, p.at.Sub(begun))
			}
		}
	}
}
