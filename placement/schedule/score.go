package schedule

import (
	"math"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"shoal/placement"
)

// Every score is normalised to 0…maxScore and multiplied by its plugin's weight in upstream's
// default profile.
const (
	maxScore = 100

	weightTaint    = 3
	weightAffinity = 2
	weightFit      = 1
	weightSpread   = 2
	weightPods     = 2
	weightBalanced = 1
	weightImage    = 1
	weightVolumes  = 1
)

// nodePreferences are per slot and do not change during a batch; slices are nil where every node
// has the same.
type nodePreferences struct {
	taints   []int64 // PreferNoSchedule taints that the pod does not tolerate; fewer is better
	affinity []int64 // sum of preferred node affinity weights
	image    []int64 // normalised already
}

// rawScores are a feasible node's scores before normalising.
type rawScores struct{ taints, affinity, crowd, attraction int64 }

// limits are what normalising needs to know about all feasible nodes.
type limits struct {
	maxTaints, maxAffinity       int64
	minCrowd, maxCrowd           int64
	minAttraction, maxAttraction int64
	spread, preferences          bool
}

// prepareScores works out what the open nodes' own properties are worth to the pod, and counts
// the pods that it would rather be away from.
func (c *class) prepareScores() {
	c.soft = c.softSpread()
	s := &c.preferences
	pod := c.pod.Object
	var preferred *nodeaffinity.PreferredSchedulingTerms
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		// A term that does not parse scores nothing; validation refuses it.
		preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	images := c.usefulImages()
	if preferred != nil {
		s.affinity = make([]int64, len(c.batch.nodes))
	}
	if len(images.names) > 0 {
		s.image = make([]int64, len(c.batch.nodes))
	}
	for _, slot := range c.open {
		n := &c.batch.nodes[slot]
		if bad := softTaints(pod, n.Object); bad > 0 {
			if s.taints == nil {
				s.taints = make([]int64, len(c.batch.nodes))
			}
			s.taints[slot] = bad
		}
		if preferred != nil {
			s.affinity[slot] = preferred.Score(n.Object)
		}
		if s.image != nil {
			s.image[slot] = images.score(n.Node)
		}
	}
}

// flatScore is the sum of a node's weighted scores that do not depend on other nodes.
func (c *class) flatScore(slot int) int64 {
	n := &c.batch.nodes[slot]
	score := leastAllocated(n, c.pod)*weightFit + balanced(n, c.pod)*weightBalanced
	if c.preferences.image != nil {
		score += c.preferences.image[slot] * weightImage
	}
	if c.volumes != nil {
		score += c.batch.volumeScore(c.volumes, n.Object) * weightVolumes
	}
	return score
}

func softTaints(pod *corev1.Pod, n *corev1.Node) (bad int64) {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule &&
			!corev1helpers.TolerationsTolerateTaint(logr.Discard(), pod.Spec.Tolerations, t, comparisonOperators) {
			bad++
		}
	}
	return bad
}

// leastAllocated prefers nodes with much room left, as a share of what they have.
func leastAllocated(n *node, pod *placement.Pod) int64 {
	free := func(requested, capacity int64) (score, weight int64) {
		switch {
		case capacity == 0:
			return 0, 0
		case requested > capacity:
			return 0, 1
		default:
			return (capacity - requested) * maxScore / capacity, 1
		}
	}
	cpu, cpuCounts := free(n.scoredMilliCPU+pod.ScoredMilliCPU, n.Allocatable.MilliCPU)
	memory, memoryCounts := free(n.scoredMemory+pod.ScoredMemory, n.Allocatable.Memory)
	if cpuCounts+memoryCounts == 0 {
		return 0
	}
	return (cpu + memory) / (cpuCounts + memoryCounts)
}

// balanced prefers nodes whose CPU and memory would be used to more equal shares than before.
func balanced(n *node, pod *placement.Pod) int64 {
	if pod.Requests.MilliCPU == 0 && pod.Requests.Memory == 0 {
		return 0
	}
	evenness := func(milliCPU, memory int64) int64 {
		if n.Allocatable.MilliCPU == 0 || n.Allocatable.Memory == 0 {
			return maxScore
		}
		cpuShare := min(float64(milliCPU)/float64(n.Allocatable.MilliCPU), 1)
		memoryShare := min(float64(memory)/float64(n.Allocatable.Memory), 1)
		return int64((1 - math.Abs((cpuShare-memoryShare)/2)) * maxScore)
	}
	before := evenness(n.requested.MilliCPU, n.requested.Memory)
	after := evenness(n.requested.MilliCPU+pod.Requests.MilliCPU, n.requested.Memory+pod.Requests.Memory)
	return maxScore/2 + (maxScore/2+after-before)/2
}

// rawScores fills c.raw for the feasible slots and finds their limits.
func (c *class) rawScores() limits {
	l := c.startLimits()
	for _, slot := range c.feasible {
		c.soft.weigh(int(slot), 1)
	}
	c.soft.endWeights()
	c.raw = c.raw[:0]
	for _, slot := range c.feasible {
		r := c.rawScore(int(slot), &l)
		c.raw = append(c.raw, r)
	}
	return l
}

func (c *class) startLimits() limits {
	c.soft.startWeights()
	return limits{
		minCrowd: math.MaxInt64, minAttraction: math.MaxInt64, maxAttraction: math.MinInt64,
		spread: len(c.soft.counts) > 0, preferences: len(c.affinity.preference) > 0,
	}
}

// rawScore is a slot's scores before normalising; it widens the limits.
func (c *class) rawScore(slot int, l *limits) (r rawScores) {
	if c.preferences.taints != nil {
		r.taints = c.preferences.taints[slot]
		l.maxTaints = max(l.maxTaints, r.taints)
	}
	if c.preferences.affinity != nil {
		r.affinity = c.preferences.affinity[slot]
		l.maxAffinity = max(l.maxAffinity, r.affinity)
	}
	if l.spread {
		if c.soft.ignores(slot) {
			r.crowd = -1
		} else {
			r.crowd = c.soft.crowd(slot)
			l.minCrowd, l.maxCrowd = min(l.minCrowd, r.crowd), max(l.maxCrowd, r.crowd)
		}
	}
	if l.preferences {
		r.attraction = c.affinity.attraction(slot)
		l.minAttraction, l.maxAttraction = min(l.minAttraction, r.attraction), max(l.maxAttraction, r.attraction)
	}
	return r
}

// total is a node's weighted sum of scores.
func (c *class) total(slot int, r *rawScores, l *limits) int64 {
	return int64(c.flat[slot]) + l.relative(r)
}

// relative is the weighted sum of the scores that are normalised over the feasible nodes.
func (l *limits) relative(r *rawScores) int64 {
	return l.taintScore(r)*weightTaint + l.affinityScore(r)*weightAffinity + l.spreadScore(r)*weightSpread + l.podsScore(r)*weightPods
}

func (l *limits) taintScore(r *rawScores) int64 {
	if l.maxTaints == 0 {
		return maxScore
	}
	return maxScore - maxScore*r.taints/l.maxTaints
}

func (l *limits) affinityScore(r *rawScores) int64 {
	if l.maxAffinity == 0 {
		return 0
	}
	return maxScore * r.affinity / l.maxAffinity
}

func (l *limits) spreadScore(r *rawScores) int64 {
	switch {
	case !l.spread || r.crowd < 0:
		return 0
	case l.maxCrowd == 0:
		return maxScore
	default:
		return maxScore * (l.maxCrowd + l.minCrowd - r.crowd) / l.maxCrowd
	}
}

func (l *limits) podsScore(r *rawScores) int64 {
	if !l.preferences || l.maxAttraction == l.minAttraction {
		return 0
	}
	return int64(maxScore * (float64(r.attraction-l.minAttraction) / float64(l.maxAttraction-l.minAttraction)))
}

// images are the pod's images that some node has, scaled by how many nodes have them, so that an
// image on one node only does not heat that node up.
type images struct {
	names  []string
	spread []float64
	count  int64 // all images of the pod
}

func (c *class) usefulImages() images {
	var i images
	eachImage(&c.pod.Object.Spec, func(name string) {
		i.count++
		if have := c.batch.view.NodesWithImage(name); have > 0 {
			i.names = append(i.names, name)
			i.spread = append(i.spread, float64(have)/float64(len(c.batch.nodes)))
		}
	})
	return i
}

// score is 0…maxScore for the bytes that need not be pulled, between 23 MiB and 1000 MiB per image.
func (i *images) score(n *placement.Node) int64 {
	const least, most = 23 << 20, 1000 << 20
	var sum int64
	for k, name := range i.names {
		if size, ok := n.Images[name]; ok {
			sum += int64(float64(size) * i.spread[k])
		}
	}
	ceiling := most * i.count
	return maxScore * (min(max(sum, least), ceiling) - least) / (ceiling - least)
}

// normalImage is an image's name as nodes report it: with a tag.
func normalImage(name string) string {
	if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		return name + ":latest"
	}
	return name
}
