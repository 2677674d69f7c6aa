package sim

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shoal/sim/model"
)

const batch = `apiVersion: batch/v1
kind: Job
metadata: {name: report, annotations: {sim.shoal.io/runs: 20s, sim.shoal.io/fails: "1"}}
spec:
  completions: 4
  parallelism: 2
  completionMode: Indexed
  ttlSecondsAfterFinished: 60
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{name: main, image: "example.org/report:1", resources: {requests: {cpu: 500m, memory: 64Mi}}}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 3
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "example.org/once:1"}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
`

// TestJobsFromManifests runs the Jobs that users apply: each index of one fails once and is started again where it was, the other runs for ten
// seconds, and a Job that may fail no more often than its pods do has failed.
func TestJobsFromManifests(t *testing.T) {
	for _, c := range []struct {
		content, expect string
		ended           []string
	}{
		{batch, "expect ready within 2m", []string{"the Job once has ended: Complete, 1 pods succeeded, 0 failed", "the Job report has ended: Complete, 4 pods succeeded, 0 failed"}},
		{
			strings.Replace(batch, "metadata: {name: once}", `metadata: {name: once, annotations: {sim.shoal.io/fails: "9"}}`, 1), "expect not ready",
			[]string{"the Job once has ended: Failed, 0 pods succeeded, 4 failed", "the Job report has ended: Complete, 4 pods succeeded, 0 failed"},
		},
	} {
		dir := folder(t, map[string]string{"jobs.yaml": c.content})
		text := "nodes 3\nworkloads " + filepath.Base(dir) + "\nrun 4m\n" + c.expect + "\n"
		s, err := Parse(strings.NewReader(text), filepath.Join(filepath.Dir(dir), "what_if.txt"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.LeftOut, []string{"CronJob (1)"}) {
			t.Errorf("left out: %v", s.LeftOut)
		}
		result, err := s.Run(t.Context(), Options{})
		if err != nil || len(result.Failed()) > 0 {
			t.Fatalf("%v: %+v", err, result.Failed())
		}
		var ended []string
		for _, e := range result.Events {
			if e.Kind == model.EventJobEnded {
				ended = append(ended, e.Text)
			}
		}
		if slices.Sort(ended); !slices.Equal(ended, c.ended) {
			t.Errorf("it ended as %q; want %q", ended, c.ended)
		}
		if second, err := parse(t, s.Text()).Run(t.Context(), Options{}); err != nil || second.Outcome.Hash != result.Outcome.Hash {
			t.Errorf("written again it runs differently (%v):\n%s", err, s.Text())
		}
	}
}

func TestJobMistakes(t *testing.T) {
	for say, change := range map[string][2]string{
		`once: spec.template.spec.restartPolicy is "Always"; expected: Never or OnFailure`:                     {"restartPolicy: Never", "restartPolicy: Always"},
		`report: spec.completions is missing; expected: a number, as the Job is Indexed`:                       {"completions: 4\n  ", ""},
		`report: the annotation sim.shoal.io/runs is "soon"; expected: a duration, as 500ms, 30s or 1h30m`:     {"20s", "soon"},
		`report: the annotation sim.shoal.io/fails is "often"; expected: a number of runs, 0 or more`:          {`"1"`, "often"},
		`once: spec.suspend is true; expected: false, as nobody would resume it`:                               {"backoffLimit: 3", "suspend: true"},
		`once: spec.backoffLimit is -3; expected: 0 or more`:                                                   {"backoffLimit: 3", "backoffLimit: -3"},
		`once: spec.parallelism is 0; expected: 1 to 10000`:                                                    {"backoffLimit: 3", "parallelism: 0"},
		`once: spec.podFailurePolicy is set; expected: nothing: which exit codes there are is not simulated`:   {"backoffLimit: 3", "podFailurePolicy: {rules: []}"},
		`once: spec.managedBy is "kueue.x-k8s.io/multikueue"; expected: kubernetes.io/job-controller or nothi`: {"backoffLimit: 3", "managedBy: kueue.x-k8s.io/multikueue"},
		`unknown field "backoffLimits"`: {"backoffLimit: 3", "backoffLimits: 3"},
	} {
		content := strings.Replace(batch, change[0], change[1], 1)
		dir := folder(t, map[string]string{"jobs.yaml": content})
		_, err := Parse(strings.NewReader("nodes 3\nworkloads "+dir+"\nrun 60s\n"), "")
		if err == nil || !strings.Contains(err.Error(), say) || !strings.HasPrefix(err.Error(), "line 2, column ") || !strings.Contains(err.Error(), "jobs.yaml: document ") {
			t.Errorf("%v; want %q", err, say)
		}
	}
	for say, line := range map[string]string{
		"line 2, column ":                       "job report completions 0 parallelism 1 runs 10s cpu 1 memory 1Gi",
		`"soon"`:                                "job report completions 1 parallelism 1 runs soon cpu 1 memory 1Gi",
		"job NAME completions NUMBER":           "job report replicas 1",
		`no line begins with "jobs"`:            "jobs report",
		"lower-case letters, digits and dashes": "job Report completions 1 parallelism 1 runs 10s cpu 1 memory 1Gi",
	} {
		if _, err := Parse(strings.NewReader("nodes 3\n"+line+"\nrun 60s\n"), ""); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%q: %v; want %q", line, err, say)
		}
	}
}
