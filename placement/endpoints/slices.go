package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// group is what may share slices: endpoints of one address type with the same ports.
type group struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// slice is an existing or new slice while it is being planned.
type slice struct {
	seen *discoveryv1.EndpointSlice // nil if it is new
	want *discoveryv1.EndpointSlice
}

// planSlices makes the slices of each address type true.
func (p *planner) planSlices(now time.Time) {
	byFamily := map[discoveryv1.AddressType][]*slice{}
	for _, s := range p.view.EndpointSlices.Of(p.service.UID) {
		if s.Labels[discoveryv1.LabelManagedBy] == managedBy && s.DeletionTimestamp == nil {
			byFamily[s.AddressType] = append(byFamily[s.AddressType], &slice{seen: s, want: s.DeepCopy()})
		}
	}
	names := placement.NewNames(string(p.service.UID), "slices", now.UTC().Format(time.RFC3339Nano))
	for _, family := range p.families() {
		p.planFamily(family, byFamily[family], names)
		delete(byFamily, family)
	}
	for _, family := range slices.Sorted(maps.Keys(byFamily)) {
		for _, s := range byFamily[family] {
			p.plan.Add(placement.Change{Verb: placement.Delete, Object: s.seen, UID: s.seen.UID})
		}
	}
}

// planFamily makes the slices of one address type true. Slices of a group keep what is still
// wanted; then the rest goes where a write is due anyway, then where it fits, then into slices
// that would be deleted, then into new ones.
func (p *planner) planFamily(family discoveryv1.AddressType, present []*slice, names *placement.Names) {
	groups := p.groups(family)
	var kept, spare []*slice
	used := map[*slice]bool{}
	for i := range groups {
		var mine []*slice
		for _, s := range present {
			if !used[s] && apiequality.Semantic.DeepEqual(s.want.Ports, groups[i].ports) {
				used[s] = true
				mine = append(mine, s)
			}
		}
		rest := groups[i].keep(mine)
		groups[i].endpoints = groups[i].fill(mine, rest)
		for _, s := range mine {
			if len(s.want.Endpoints) == 0 {
				spare = append(spare, s)
			} else {
				kept = append(kept, s)
			}
		}
	}
	for _, s := range present {
		if !used[s] {
			spare = append(spare, s)
		}
	}
	for i := range groups {
		for chunk := range slices.Chunk(groups[i].endpoints, maxPerSlice) {
			var s *slice
			if len(spare) > 0 {
				s, spare = spare[0], spare[1:]
			} else {
				s = p.newSlice(family, names)
			}
			s.want.Ports, s.want.Endpoints = groups[i].ports, chunk
			kept = append(kept, s)
		}
	}
	if len(kept) == 0 { // an empty slice says: the service is known and has no endpoints
		var s *slice
		if len(spare) > 0 {
			s, spare = spare[0], spare[1:]
		} else {
			s = p.newSlice(family, names)
		}
		s.want.Endpoints = []discoveryv1.Endpoint{}
		kept = append(kept, s)
	}
	p.write(kept, spare)
}

// groups sorts the backends' endpoints by their ports.
func (p *planner) groups(family discoveryv1.AddressType) []group {
	index := map[string]int{}
	var groups []group
	for i := range p.backends {
		b := &p.backends[i]
		addresses := b.addresses(family)
		if len(addresses) == 0 {
			continue
		}
		ports := p.slicePorts(b)
		if len(ports) == 0 && len(p.service.Spec.Ports) > 0 {
			continue // none of its named ports is known to the pod
		}
		key := portsKey(ports)
		at, ok := index[key]
		if !ok {
			at = len(groups)
			index[key] = at
			groups = append(groups, group{family: family, ports: ports})
		}
		groups[at].endpoints = append(groups[at].endpoints, p.endpoint(b, addresses))
	}
	return groups
}

func (p *planner) slicePorts(b *backend) []discoveryv1.EndpointPort {
	ports := []discoveryv1.EndpointPort{}
	for _, found := range p.ports(b) {
		ports = append(ports, discoveryv1.EndpointPort{
			Name:        ptr.To(found.service.Name),
			Port:        ptr.To(found.number),
			Protocol:    ptr.To(cmp.Or(found.service.Protocol, corev1.ProtocolTCP)),
			AppProtocol: found.service.AppProtocol,
		})
	}
	return ports
}

func portsKey(ports []discoveryv1.EndpointPort) string {
	var key strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&key, "%q %d %s %q;", *port.Name, *port.Port, *port.Protocol, ptr.Deref(port.AppProtocol, ""))
	}
	return key.String()
}

// keep drops what is no longer wanted from the group's slices, brings the rest up to date in its
// place, and returns the endpoints that are in no slice yet.
func (g *group) keep(mine []*slice) []discoveryv1.Endpoint {
	wanted := make(map[string]int, len(g.endpoints))
	for i := range g.endpoints {
		wanted[identity(&g.endpoints[i])] = i
	}
	found := make([]bool, len(g.endpoints))
	for _, s := range mine {
		left := make([]discoveryv1.Endpoint, 0, len(s.want.Endpoints))
		for i := range s.want.Endpoints {
			at, ok := wanted[identity(&s.want.Endpoints[i])]
			if ok && !found[at] && len(left) < maxPerSlice {
				found[at] = true
				left = append(left, g.endpoints[at])
			}
		}
		s.want.Endpoints = left
	}
	var rest []discoveryv1.Endpoint
	for i := range g.endpoints {
		if !found[i] {
			rest = append(rest, g.endpoints[i])
		}
	}
	return rest
}

// identity tells endpoints apart: the pod, and its addresses.
func identity(e *discoveryv1.Endpoint) string {
	uid := ""
	if e.TargetRef != nil {
		uid = string(e.TargetRef.UID)
	}
	return uid + " " + strings.Join(e.Addresses, " ")
}

// fill puts endpoints into slices that have room: first those that change anyway, then the
// fullest. It returns what did not fit.
func (g *group) fill(mine []*slice, rest []discoveryv1.Endpoint) []discoveryv1.Endpoint {
	order := slices.Clone(mine)
	slices.SortStableFunc(order, func(a, b *slice) int {
		return cmp.Or(
			cmp.Compare(unchanged(a), unchanged(b)),
			cmp.Compare(len(b.want.Endpoints), len(a.want.Endpoints)),
		)
	})
	for _, s := range order {
		room := min(maxPerSlice-len(s.want.Endpoints), len(rest))
		// An emptied slice is as good as a new one: leave it to be reused by any group.
		if room <= 0 || len(s.want.Endpoints) == 0 {
			continue
		}
		s.want.Endpoints = append(s.want.Endpoints, rest[:room]...)
		rest = rest[room:]
	}
	return rest
}

func unchanged(s *slice) int {
	if apiequality.Semantic.DeepEqual(s.seen.Endpoints, s.want.Endpoints) {
		return 1
	}
	return 0
}

func (p *planner) newSlice(family discoveryv1.AddressType, names *placement.Names) *slice {
	want := &discoveryv1.EndpointSlice{AddressType: family}
	want.Namespace = p.service.Namespace
	want.GenerateName = p.service.Name + "-"
	want.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(p.service, corev1.SchemeGroupVersion.WithKind("Service"))}
	for want.Name == "" {
		name := want.GenerateName + names.Suffix()
		if _, taken := p.view.EndpointSlices.Get(want.Namespace, name); !taken {
			want.Name = name
		}
	}
	return &slice{want: want}
}

// write adds the changes of kept slices that differ, and the deletions of spare ones.
func (p *planner) write(kept, spare []*slice) {
	for _, s := range kept {
		s.want.Labels = p.labels()
		switch {
		case s.seen == nil:
			p.plan.Add(placement.Change{Verb: placement.Create, Object: s.want})
		case !apiequality.Semantic.DeepEqual(s.seen, s.want):
			p.plan.Add(placement.Updating(placement.Update, s.seen, s.want))
		}
	}
	for _, s := range spare {
		p.plan.Add(placement.Change{Verb: placement.Delete, Object: s.seen, UID: s.seen.UID})
	}
}

// labels are the service's own and those by which slices are found.
func (p *planner) labels() map[string]string {
	set := maps.Clone(p.service.Labels)
	if set == nil {
		set = map[string]string{}
	}
	delete(set, corev1.IsHeadlessService)
	if headless(p.service) {
		set[corev1.IsHeadlessService] = ""
	}
	set[discoveryv1.LabelServiceName] = p.service.Name
	set[discoveryv1.LabelManagedBy] = managedBy
	return set
}
