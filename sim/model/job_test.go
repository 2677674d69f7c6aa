package model

import (
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/utils/ptr"
)

// TestJobsUnderFaults runs Jobs whose pods fail at first, beside what else runs, under random faults: each comes to exactly its completions, which
// the checkers `convergence` and `state` demand.
func TestJobsUnderFaults(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 6; seed++ {
		cfg := swarm(seed)
		cfg.Length, cfg.ReadyWithin = 8*time.Minute, 6*time.Minute
		for _, mode := range []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion} {
			cfg.Workloads = append(cfg.Workloads, Workload{
				Name: strings.ToLower(string(mode)), Replicas: 4, Requests: list("250m", "128Mi", ""),
				Job: &Job{Runs: 12 * time.Second, Fails: 1, Spec: batchv1.JobSpec{
					Completions: ptr.To[int32](12), Parallelism: ptr.To[int32](4), CompletionMode: ptr.To(mode), BackoffLimit: ptr.To[int32](1000),
					PodReplacementPolicy: ptr.To(batchv1.TerminatingOrFailed),
				}},
			})
		}
		outcome, err := Run(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, violation := range outcome.Violations {
			t.Errorf("seed %d: %s", seed, violation)
		}
	}
}
