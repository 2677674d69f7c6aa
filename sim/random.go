package sim

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"shoal/sim/model"
)

// Times of a scenario that is drawn: a fault now and then, and quiet at both ends, so that everything can begin and settle.
const (
	quietBefore = 10 * time.Second
	quietAfter  = 70 * time.Second
	// faultEvery is how far apart faults are, on average, in a cluster of up to twenty machines.
	faultEvery = 6 * time.Second
	// ShortestRandom is the least time in which faults can be drawn.
	ShortestRandom = quietBefore + quietAfter + 10*time.Second
)

// Random is a scenario drawn from a seed: a cluster of so many peers in three zones, half full, and all kinds of faults.
func Random(seed uint64, peers int, length time.Duration) (*Scenario, error) {
	switch {
	case peers < 3 || peers > mostNodes:
		return nil, fmt.Errorf("%d peers cannot be simulated under random faults; expected: 3 to %d", peers, mostNodes)
	case length < ShortestRandom || length > longest:
		return nil, fmt.Errorf("%s is no time for random faults; expected: %s to %s", length, ShortestRandom, longest)
	}
	requests := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	faults := int((length-quietBefore-quietAfter)/faultEvery) * max(peers/20, 1)
	allocatable := requests("4", "8Gi")
	allocatable[corev1.ResourcePods] = resource.MustParse("110")
	s := &Scenario{Name: fmt.Sprintf("random-%d", seed), Title: "Drawn from a seed.", Config: model.Config{
		Seed: seed, Nodes: peers, Zones: 3, Shards: min(1+peers/3, 8), Allocatable: allocatable,
		Workloads: []model.Workload{
			{Name: "web", Replicas: 3 * peers, Requests: requests("250m", "128Mi")},
			{Name: "shop", Replicas: peers, Requests: requests("500m", "256Mi")},
			{Name: "db", Stateful: true, Replicas: 3, Requests: requests("500m", "1Gi")},
		},
		Random: model.Swarm{Faults: min(max(faults, 1), mostFaults), From: quietBefore, Until: length - quietAfter},
		Length: length, Operators: true,
	}}
	return s, s.Expect("expect ready within 40s")
}

// Expect adds a line that begins with expect.
func (s *Scenario) Expect(text string) error {
	p := &parser{scenario: s, line: len(s.Expects) + 1}
	return p.take(text)
}
