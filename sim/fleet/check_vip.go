package fleet

import (
	"context"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/mesh/vip"
)

// staleVIP is for how long a rule may lead to a pod that does not run any more, on a machine that hears the others.
const staleVIP = 15 * time.Second

// watchVIPs holds that no virtual IP leads for long to a pod that is gone.
func (r *run) watchVIPs(ctx context.Context) {
	since := map[string]time.Time{}
	for pause(ctx, time.Second) == nil {
		alive := map[string]bool{}
		for _, m := range r.fleet.Machines() {
			for _, address := range m.addresses() {
				alive[address] = true
			}
		}
		seen := map[string]bool{}
		for _, m := range r.fleet.Machines() {
			if r.troubled(m) {
				continue // nobody can tell it
			}
			for _, key := range r.fronts() {
				_, targets := m.rules.Lookup(m.Address, key)
				for _, target := range targets {
					if alive[target.Addr().String()] {
						continue
					}
					id := m.Name + " " + key.String() + " " + target.String()
					seen[id] = true
					if begun, known := since[id]; !known {
						since[id] = time.Now()
					} else if time.Since(begun) > staleVIP {
						r.blame("vip", "on %s the virtual IP %s has led to %s for %s after the end of its pod", m.Name, key, target, time.Since(begun))
						since[id] = time.Now()
					}
				}
			}
		}
		for id := range since {
			if !seen[id] {
				delete(since, id)
			}
		}
	}
}

func frontOf(service *corev1.Service) (vip.FrontKey, error) {
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	return vip.FrontKey{Addr: address, Protocol: vip.TCP, Port: 80}, err
}
