package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// overload is by how much more than its share of the CPUs a zone may be used, so that traffic can stay in zones (KEP-2433).
const overload = 0.2

// topologyAware tells whether the service asks for hints that share its endpoints among zones by their CPUs. That goes before its
// traffic distribution.
// https://kubernetes.io/docs/concepts/services-networking/topology-aware-routing
func topologyAware(svc *corev1.Service) bool {
	mode, ok := svc.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if !ok {
		mode = svc.Annotations[corev1.AnnotationTopologyMode]
	}
	return mode == "Auto" || mode == "auto"
}

// shareAmongZones gives the ready endpoints of all groups hints for zones: each for its own, but for those that a zone with more than its
// share gives to one with less. If that cannot be done well, none gets a hint, and an event says why. Upstream's rules, with ties broken by
// names, so that the same cluster gives the same hints.
func (p *planner) shareAmongZones(groups []group, family discoveryv1.AddressType) {
	var ready []*backend
	for i := range groups {
		for _, m := range groups[i].members {
			if p.leadsTo(m.backend) {
				ready = append(ready, m.backend)
			}
		}
	}
	p.hinted = map[types.UID]string{}
	desired, problem := p.shares(len(ready))
	if problem == "" && slices.ContainsFunc(ready, func(b *backend) bool { return b.zone() == "" }) {
		problem = "One or more endpoints do not have a zone specified"
	}
	if problem != "" {
		p.plan.Events = append(p.plan.Events, placement.Event{
			Regarding: p.service, Type: corev1.EventTypeWarning, Reason: "TopologyAwareHintsDisabled",
			Message: fmt.Sprintf("%s, addressType: %s", problem, family), Component: "endpoint-slice-controller",
		})
		return
	}
	have := map[string]int{}
	for _, b := range ready {
		have[b.zone()]++
	}
	give, receive := transfers(desired, have)
	for _, b := range ready {
		zone := b.zone()
		if give[zone] > 0 {
			give[zone]--
			zone = slices.Sorted(maps.Keys(receive))[0]
			if receive[zone]--; receive[zone] == 0 {
				delete(receive, zone)
			}
		}
		p.hinted[b.pod.UID] = zone
	}
}

// shares is how many of a number of endpoints each zone should have, by the CPUs of its ready nodes; or why they cannot be shared.
func (p *planner) shares(endpoints int) (desired map[string]float64, problem string) {
	cpus, total := map[string]float64{}, 0.0
	for _, n := range p.view.Nodes() {
		_, control := n.Object.Labels["node-role.kubernetes.io/control-plane"]
		_, master := n.Object.Labels["node-role.kubernetes.io/master"]
		if control || master || n.Ready() != corev1.ConditionTrue {
			continue
		}
		cpu := float64(n.Object.Status.Allocatable.Cpu().MilliValue())
		if n.Zone() == "" || cpu <= 0 {
			return nil, "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
		}
		cpus[n.Zone()] += cpu
		total += cpu
	}
	switch {
	case len(cpus) < 2:
		return nil, "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
	case len(cpus) > endpoints:
		return nil, fmt.Sprintf("Insufficient number of endpoints (%d endpoints, %d zones)", endpoints, len(cpus))
	}
	desired = map[string]float64{}
	least := 0
	for zone, cpu := range cpus {
		share := cpu / total * float64(endpoints)
		minimum := math.Ceil(share / (1 + overload))
		least += int(minimum)
		desired[zone] = max(share, minimum)
	}
	if least > endpoints {
		return nil, fmt.Sprintf("Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (%d endpoints, %d zones)",
			endpoints, len(cpus))
	}
	return desired, ""
}

// transfers says how many endpoints each zone gives away and gets, as long as that brings both nearer to what they should have.
func transfers(desired map[string]float64, have map[string]int) (give, receive map[string]int) {
	over := map[string]float64{}
	for zone, want := range desired {
		over[zone] = float64(have[zone]) - want
	}
	give, receive = map[string]int{}, map[string]int{}
	zones := slices.Sorted(maps.Keys(over))
	byExcess := func(a, b string) int { return cmp.Compare(over[a], over[b]) }
	for len(zones) > 0 {
		to, from := slices.MinFunc(zones, byExcess), slices.MaxFunc(zones, byExcess)
		if over[from] < 0.5 || -over[to] < 0.5 || over[from] < 1 && -over[to] < 1 {
			break
		}
		give[from]++
		over[from]--
		receive[to]++
		over[to]++
	}
	return give, receive
}

// trafficDistribution is the service's wish, "" without one or where topology-aware hints go before it.
func trafficDistribution(svc *corev1.Service) string {
	if topologyAware(svc) {
		return ""
	}
	return ptr.Deref(svc.Spec.TrafficDistribution, "")
}
