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
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// group is what may share slices: endpoints of one address type with the same ports.
type group struct {
	family  discoveryv1.AddressType
	ports   []discoveryv1.EndpointPort
	members []member
}

// member is a backend with its addresses of the group's type. Its endpoint is made only when a slice does not have it already.
type member struct {
	*backend
	addresses []string
}

// slice is an existing or new slice while it is being planned.
type slice struct {
	seen *discoveryv1.EndpointSlice // nil if it is new
	want *discoveryv1.EndpointSlice // shares with seen what has not changed
	// changed says that ports or endpoints differ from those seen.
	changed bool
}

// planSlices makes the slices of each address type true.
func (p *planner) planSlices(now time.Time) {
	byFamily := map[discoveryv1.AddressType][]*slice{}
	for _, s := range p.view.EndpointSlices.Of(p.service.UID) {
		if s.Labels[discoveryv1.LabelManagedBy] == managedBy && s.DeletionTimestamp == nil {
			byFamily[s.AddressType] = append(byFamily[s.AddressType], &slice{seen: s, want: ptr.To(*s)})
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
		groups[i].members = p.fill(mine, p.keep(&groups[i], mine))
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
		for chunk := range slices.Chunk(groups[i].members, maxPerSlice) {
			var s *slice
			if len(spare) > 0 {
				s, spare = spare[0], spare[1:]
			} else {
				s = p.newSlice(family, names)
			}
			s.changed, s.want.Ports, s.want.Endpoints = true, groups[i].ports, p.endpoints(chunk)
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
		if s.want.Endpoints = []discoveryv1.Endpoint{}; s.seen == nil || len(s.seen.Endpoints) > 0 {
			s.changed = true
		}
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
		ports, key := p.slicePorts(b)
		if len(ports) == 0 && len(p.service.Spec.Ports) > 0 {
			continue // none of its named ports is known to the pod
		}
		at, ok := index[key]
		if !ok {
			at = len(groups)
			index[key] = at
			groups = append(groups, group{family: family, ports: ports})
		}
		groups[at].members = append(groups[at].members, member{b, addresses})
	}
	if topologyAware(p.service) {
		p.shareAmongZones(groups, family)
	}
	return groups
}

// slicePorts are the ports of a backend, and a key that is equal for equal ports. They are worked out once if the service names none of
// them, since then they are the same for all pods.
func (p *planner) slicePorts(b *backend) ([]discoveryv1.EndpointPort, string) {
	if p.samePorts != nil {
		return p.samePorts, p.samePortsKey
	}
	ports := []discoveryv1.EndpointPort{}
	for _, found := range p.ports(b) {
		ports = append(ports, discoveryv1.EndpointPort{
			Name:        ptr.To(found.service.Name),
			Port:        ptr.To(found.number),
			Protocol:    ptr.To(cmp.Or(found.service.Protocol, corev1.ProtocolTCP)),
			AppProtocol: found.service.AppProtocol,
		})
	}
	key := portsKey(ports)
	if !slices.ContainsFunc(p.service.Spec.Ports, func(sp corev1.ServicePort) bool { return sp.TargetPort.Type != intstr.Int }) {
		p.samePorts, p.samePortsKey = ports, key
	}
	return ports, key
}

func portsKey(ports []discoveryv1.EndpointPort) string {
	var key strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&key, "%q %d %s %q;", *port.Name, *port.Port, *port.Protocol, ptr.Deref(port.AppProtocol, ""))
	}
	return key.String()
}

// endpoints are those of the members, made anew.
func (p *planner) endpoints(members []member) []discoveryv1.Endpoint {
	all := make([]discoveryv1.Endpoint, len(members))
	for i, m := range members {
		all[i] = p.endpoint(m.backend, m.addresses)
	}
	return all
}

// keep drops what is no longer wanted from the group's slices, brings the rest up to date in its
// place, and returns the members that are in no slice yet.
func (p *planner) keep(g *group, mine []*slice) []member {
	wanted := make(map[identity]int, len(g.members))
	for i := range g.members {
		wanted[identityOf(string(g.members[i].pod.UID), g.members[i].addresses)] = i
	}
	found := make([]bool, len(g.members))
	for _, s := range mine {
		left := make([]discoveryv1.Endpoint, 0, len(s.seen.Endpoints))
		for i := range s.seen.Endpoints {
			e := &s.seen.Endpoints[i]
			uid := ""
			if e.TargetRef != nil {
				uid = string(e.TargetRef.UID)
			}
			at, ok := wanted[identityOf(uid, e.Addresses)]
			if !ok || found[at] || len(left) == maxPerSlice {
				s.changed = true
				continue
			}
			found[at] = true
			if m := g.members[at]; p.shows(e, m.backend) {
				left = append(left, *e)
			} else {
				left = append(left, p.endpoint(m.backend, m.addresses))
				s.changed = true
			}
		}
		if s.changed {
			s.want.Endpoints = left
		}
	}
	var rest []member
	for i := range g.members {
		if !found[i] {
			rest = append(rest, g.members[i])
		}
	}
	return rest
}

// identity tells endpoints apart: the pod, and its addresses.
type identity struct{ uid, addresses string }

func identityOf(uid string, addresses []string) identity {
	if len(addresses) == 1 {
		return identity{uid, addresses[0]} // without a copy
	}
	return identity{uid, strings.Join(addresses, " ")}
}

// fill puts members into slices that have room: first those that change anyway, then the
// fullest. It returns what did not fit.
func (p *planner) fill(mine []*slice, rest []member) []member {
	order := slices.Clone(mine)
	slices.SortStableFunc(order, func(a, b *slice) int {
		if a.changed != b.changed {
			return cmp.Compare(flag(b.changed), flag(a.changed))
		}
		return cmp.Compare(len(b.want.Endpoints), len(a.want.Endpoints))
	})
	for _, s := range order {
		room := min(maxPerSlice-len(s.want.Endpoints), len(rest))
		// An emptied slice is as good as a new one: leave it to be reused by any group.
		if room <= 0 || len(s.want.Endpoints) == 0 {
			continue
		}
		s.changed, s.want.Endpoints = true, slices.Concat(s.want.Endpoints, p.endpoints(rest[:room]))
		rest = rest[room:]
	}
	return rest
}

func flag(b bool) int {
	if b {
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
	labels := p.labels()
	for _, s := range kept {
		s.changed = s.changed || !maps.Equal(s.want.Labels, labels)
		s.want.Labels = maps.Clone(labels)
		switch {
		case s.seen == nil:
			p.plan.Add(placement.Change{Verb: placement.Create, Object: s.want})
		case s.changed:
			p.plan.Add(placement.Updating(placement.Update, s.seen, s.want.DeepCopy()))
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
