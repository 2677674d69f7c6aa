package pods

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
)

// GrantTTL is how long a grant holds room for a pod whose binding has not been seen yet.
const GrantTTL = 10 * time.Second

// HostPort is a port of the node that only one pod may have.
type HostPort struct {
	IP       string // "" = all addresses
	Protocol corev1.Protocol
	Port     int32
}

// Claim asks a node for room for one pod, before the pod is bound to it (D6).
type Claim struct {
	PodUID    types.UID           `json:"podUID"`
	Namespace string              `json:"namespace"`
	Name      string              `json:"name"`
	Requests  corev1.ResourceList `json:"requests,omitempty"`
	HostPorts []HostPort          `json:"hostPorts,omitempty"`
	// Pod lets the node prepare while the binding commits; optional. Of a pod that runs it is what leaders of other shards need to know
	// to keep their pods near it or away from it, or to preempt it: labels, inter-pod affinity, priority, start and deletion; and the
	// object's version, which says whether any of it has changed.
	Pod *corev1.Pod `json:"pod,omitempty"`
}

// Answer to a Claim.
type Answer struct {
	PodUID  types.UID `json:"podUID"`
	Granted bool      `json:"granted"`
	Reasons []string  `json:"reasons,omitempty"` // "Insufficient cpu", as the scheduler words them
}

// Capacity is what a node can give.
type Capacity struct {
	Allocatable corev1.ResourceList // with ResourcePods as the most pods
	Closed      string              // not empty: no new pods, for this reason (draining, fenced, disk full)
}

// Load of a node: what counts against Capacity.
type Load struct {
	Running map[types.UID]Claim     // pods bound here and not over; they count always
	Granted map[types.UID]GrantedAt // granted and not seen bound
}

// GrantedAt is a claim and when it was granted.
type GrantedAt struct {
	Claim Claim
	At    time.Time
}

// ClaimOf is what a pod asks a node for.
func ClaimOf(pod *corev1.Pod) Claim {
	c := Claim{PodUID: pod.UID, Namespace: pod.Namespace, Name: pod.Name, Requests: requestsOf(pod)}
	for i := range pod.Spec.Containers {
		c.HostPorts = append(c.HostPorts, hostPorts(&pod.Spec.Containers[i])...)
	}
	for i := range pod.Spec.InitContainers {
		if restartable(&pod.Spec.InitContainers[i]) {
			c.HostPorts = append(c.HostPorts, hostPorts(&pod.Spec.InitContainers[i])...)
		}
	}
	return c
}

// requestsOf is what a pod asks for. The map may be the pod's own.
func requestsOf(pod *corev1.Pod) corev1.ResourceList {
	if spec := &pod.Spec; len(spec.Containers) == 1 && len(spec.InitContainers) == 0 && spec.Resources == nil && len(spec.Overhead) == 0 {
		return spec.Containers[0].Resources.Requests
	}
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
}

// heldBy is the claim of a pod that is bound here. Its Pod is the pod itself: see Claim.Outline.
func heldBy(pod *corev1.Pod) Claim {
	c := ClaimOf(pod)
	c.Pod = pod
	return c
}

// Outline is the claim with of its pod only what the leaders of other shards need to know; see Claim.Pod.
func (c Claim) Outline() Claim {
	pod := c.Pod
	if pod == nil {
		return c
	}
	c.Pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: pod.ResourceVersion, Labels: pod.Labels, DeletionTimestamp: pod.DeletionTimestamp,
	}}
	c.Pod.Spec.Priority, c.Pod.Status.StartTime = pod.Spec.Priority, pod.Status.StartTime
	if a := pod.Spec.Affinity; a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil) {
		c.Pod.Spec.Affinity = &corev1.Affinity{PodAffinity: a.PodAffinity, PodAntiAffinity: a.PodAntiAffinity}
	}
	return c
}

func hostPorts(c *corev1.Container) []HostPort {
	var out []HostPort
	for _, p := range c.Ports {
		if p.HostPort > 0 {
			proto := p.Protocol
			if proto == "" {
				proto = corev1.ProtocolTCP
			}
			out = append(out, HostPort{IP: p.HostIP, Protocol: proto, Port: p.HostPort})
		}
	}
	return out
}

// Admit answers claims in order, each against what runs, what is granted and what it granted before in the same call. A claim of a pod
// that is running or granted already is granted again (a retry). Grants older than GrantTTL no longer count. It returns the new grants
// with the old ones that still stand.
func Admit(capacity Capacity, load Load, claims []Claim, now time.Time) ([]Answer, map[types.UID]GrantedAt) {
	granted := map[types.UID]GrantedAt{}
	used := corev1.ResourceList{}
	ports := map[HostPort]int{}
	count := func(c Claim) {
		addRequests(used, c.Requests)
		for _, p := range c.HostPorts {
			ports[p]++
		}
	}
	for _, c := range load.Running {
		count(c)
	}
	for uid, g := range load.Granted {
		if _, runs := load.Running[uid]; !runs && now.Sub(g.At) < GrantTTL {
			granted[uid] = g
			count(g.Claim)
		}
	}
	answers := make([]Answer, 0, len(claims))
	for _, c := range claims {
		_, runs := load.Running[c.PodUID]
		held, again := granted[c.PodUID]
		var reasons []string
		switch {
		case runs:
		case again && equalClaims(held.Claim, c):
			granted[c.PodUID] = GrantedAt{Claim: c, At: now}
		case again:
			reasons = []string{"a different claim of this pod is granted"}
		default:
			if reasons = refusals(capacity, used, ports, c); len(reasons) == 0 {
				granted[c.PodUID] = GrantedAt{Claim: c, At: now}
				count(c)
			}
		}
		answers = append(answers, Answer{PodUID: c.PodUID, Granted: len(reasons) == 0, Reasons: reasons})
	}
	return answers, granted
}

func equalClaims(a, b Claim) bool {
	return slices.Equal(a.HostPorts, b.HostPorts) && fmt.Sprint(describe(a.Requests)) == fmt.Sprint(describe(b.Requests))
}

func describe(list corev1.ResourceList) []string {
	var out []string
	for name, q := range list {
		out = append(out, string(name)+"="+q.String())
	}
	slices.Sort(out)
	return out
}

// addRequests adds requests, and one pod, to sum.
func addRequests(sum, requests corev1.ResourceList) {
	for name, q := range requests {
		if name == corev1.ResourcePods {
			continue
		}
		have := sum[name]
		have.Add(q)
		sum[name] = have
	}
	have := sum[corev1.ResourcePods]
	have.Add(*resource.NewQuantity(1, resource.DecimalSI))
	sum[corev1.ResourcePods] = have
}

// refusals returns why a claim cannot be granted, sorted; none means it fits.
func refusals(capacity Capacity, used corev1.ResourceList, ports map[HostPort]int, c Claim) []string {
	var out []string
	if capacity.Closed != "" {
		out = append(out, capacity.Closed)
	}
	for name, q := range c.Requests {
		if q.Sign() < 0 {
			out = append(out, "Negative request of "+string(name)) // it would make room that is not there
		}
	}
	after := used.DeepCopy()
	if after == nil {
		after = corev1.ResourceList{}
	}
	addRequests(after, c.Requests)
	for name, q := range after {
		asked := c.Requests[name]
		if name != corev1.ResourcePods && asked.IsZero() {
			continue
		}
		have, known := capacity.Allocatable[name]
		if name == corev1.ResourcePods {
			if known && q.Cmp(have) > 0 {
				out = append(out, "Too many pods")
			}
			continue
		}
		if q.Cmp(have) > 0 {
			out = append(out, "Insufficient "+string(name))
		}
	}
	for _, p := range c.HostPorts {
		if portTaken(ports, p) {
			out = append(out, fmt.Sprintf("host port %d/%s is taken", p.Port, strings.ToLower(string(p.Protocol))))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// portTaken reports a conflict: the same protocol and port on the same address, or on all of them on either side.
func portTaken(ports map[HostPort]int, p HostPort) bool {
	for have, n := range ports {
		if n > 0 && have.Protocol == p.Protocol && have.Port == p.Port &&
			(anyAddress(have.IP) || anyAddress(p.IP) || have.IP == p.IP) {
			return true
		}
	}
	return false
}

func anyAddress(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }
