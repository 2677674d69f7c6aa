package model

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func list(cpu, memory, pods string) corev1.ResourceList {
	l := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	if pods != "" {
		l[corev1.ResourcePods] = resource.MustParse(pods)
	}
	return l
}

// swarm is a cluster of nine under random faults.
func swarm(seed uint64) Config {
	return Config{
		Seed: seed, Nodes: 9, Zones: 3, Allocatable: list("4", "8Gi", "110"), Shards: 3,
		Workloads: []Workload{
			{Name: "web", Replicas: 24, Requests: list("250m", "128Mi", "")},
			{Name: "shop", Replicas: 12, Requests: list("500m", "256Mi", "")},
			{Name: "db", Stateful: true, Replicas: 3, Requests: list("500m", "1Gi", "")},
		},
		Random: Swarm{Faults: 10, From: 10 * time.Second, Until: 70 * time.Second},
		Length: 180 * time.Second, ReadyWithin: 40 * time.Second,
	}
}

func TestRandomFaults(t *testing.T) {
	for seed := range uint64(12) {
		var text strings.Builder
		cfg := swarm(seed)
		cfg.Trace = &text
		outcome, err := Run(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d: %+v", seed, outcome)
		if len(outcome.Violations) > 0 {
			t.Errorf("seed %d", seed)
			if testing.Verbose() && seed == 99 {
				t.Log(text.String())
			}
		}
	}
}
