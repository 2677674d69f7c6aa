package fleet

import (
	"context"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/mesh/vip"
)

// staleVIP is for how long a rule may lead to a pod that does not run any more, on a machine that hears the others, while every shard has
// a leader and most of its voters: without the meta shard's nobody judges a node lost, and without a namespace's nobody writes its endpoints.
const staleVIP = 15 * time.Second

// staleRule is a rule that leads to a pod that is gone.
type staleRule struct{ machine, front, target string }

// vipCheck holds that no virtual IP leads for long to a pod that is gone.
type vipCheck struct {
	since map[staleRule]time.Time
}

// watchVIPs looks at all rules until ctx ends.
func (r *run) watchVIPs(ctx context.Context) {
	check := vipCheck{}
	for pause(ctx, time.Second) == nil {
		check.look(r, r.staleRules(), r.quorate(), time.Now())
	}
}

// look takes the rules that lead to pods that are gone, and whether every shard can do its work.
func (c *vipCheck) look(r *run, stale []staleRule, quorate bool, now time.Time) {
	before := c.since
	c.since = map[staleRule]time.Time{}
	if !quorate {
		return
	}
	for _, rule := range stale {
		begun, known := before[rule]
		if !known {
			begun = now
		}
		if c.since[rule] = begun; now.Sub(begun) > staleVIP {
			r.blame("vip", "on %s the virtual IP %s has led to %s for %s after the end of its pod", rule.machine, rule.front, rule.target, now.Sub(begun))
			c.since[rule] = now
		}
	}
}

// staleRules are those of all machines that can be told.
func (r *run) staleRules() []staleRule {
	alive := map[string]bool{}
	for _, m := range r.fleet.Machines() {
		for _, address := range m.addresses() {
			alive[address] = true
		}
	}
	var stale []staleRule
	for _, m := range r.fleet.Machines() {
		if r.troubled(m) {
			continue
		}
		for _, key := range r.fronts() {
			_, targets := m.rules.Lookup(m.Address, key)
			for _, target := range targets {
				if !alive[target.Addr().String()] {
					stale = append(stale, staleRule{m.Name, key.String(), target.String()})
				}
			}
		}
	}
	return stale
}

// quorate tells whether every shard has a leader, and most of its voters run on machines that nothing ails.
func (r *run) quorate() bool {
	sound := map[string]bool{}
	for _, m := range r.fleet.Machines() {
		if !r.troubled(m) && r.fleet.Running(m) {
			sound[m.ID()] = true
		}
	}
	return holdsAll(r.fleet.groups(), sound, r.fleet.shards())
}

func frontOf(service *corev1.Service) (vip.FrontKey, error) {
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	return vip.FrontKey{Addr: address, Protocol: vip.TCP, Port: 80}, err
}
