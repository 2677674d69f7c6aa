package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shoal/sim/model"
)

const shop = `# what users apply
apiVersion: apps/v1
kind: Deployment
metadata: {name: front, namespace: shop, labels: {tier: front}}
spec:
  replicas: 6
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      containers:
      - {name: main, image: "example.org/front:1", resources: {requests: {cpu: 250m}, limits: {memory: 128Mi}}, volumeMounts: [{name: data, mountPath: /data}]}
      volumes: [{name: data, emptyDir: {}}]
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, labelSelector: {matchLabels: {app: front}}}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {selector: {app: front}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers: [{name: main, image: "example.org/db:1", resources: {requests: {cpu: 500m, memory: 1Gi}}}]
      affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: db}}}]}}
`

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestWorkloadsFromManifests runs a cluster with what users apply: the pods go where their manifests let them, and a zone's loss is survived.
func TestWorkloadsFromManifests(t *testing.T) {
	dir := folder(t, map[string]string{"shop.yaml": shop, "README.md": "no manifest"})
	text := "nodes 6 zones 3\nworkloads " + filepath.Base(dir) + "\nat 20s crash n5\nrun 80s\nexpect ready within 20s\n"
	s, err := Parse(strings.NewReader(text), filepath.Join(filepath.Dir(dir), "what_if.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Config.Workloads) != 2 || s.Config.Workloads[0].Name != "shop-front" || s.Config.Workloads[1].Name != "db" || !s.Config.Workloads[1].Stateful ||
		!slices.Equal(s.LeftOut, []string{"Service (1)"}) {
		t.Fatalf("%+v, left out: %v", s.Config.Workloads, s.LeftOut)
	}
	result, err := s.Run(t.Context(), Options{})
	if err != nil || len(result.Failed()) > 0 {
		t.Fatalf("%v: %+v", err, result.Failed())
	}
	on := map[string][]string{} // by workload: where its pods were placed at first
	for _, e := range result.Events {
		if e.Kind == model.EventBound && e.At.Seconds() < 10 {
			workload, _, _ := strings.Cut(e.Pod, "/")
			on[workload] = append(on[workload], e.Node)
		}
	}
	zones := map[int]int{}
	for _, node := range on["shop-front"] {
		var number int
		if _, err := fmt.Sscanf(node, "n%d", &number); err != nil {
			t.Fatal(err)
		}
		zones[number%3]++
	}
	if zones[0] != 2 || zones[1] != 2 || zones[2] != 2 {
		t.Errorf("the pods of front, which are to be spread over zones, are on %v", on["shop-front"])
	}
	if slices.Sort(on["db"]); len(slices.Compact(on["db"])) != 3 {
		t.Errorf("the pods of db, which do not bear each other, are on %v", on["db"])
	}
	again := parse(t, s.Text())
	if second, err := again.Run(t.Context(), Options{}); err != nil || second.Outcome.Hash != result.Outcome.Hash {
		t.Errorf("written again it runs differently (%v):\n%s", err, s.Text())
	}
	if only := parse(t, "nodes 3\nworkloads "+dir+" only db\nrun 60s\n"); len(only.Config.Workloads) != 1 {
		t.Errorf("only db: %+v", only.Config.Workloads)
	}
}

const agents = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: main, image: "example.org/agent:1", resources: {requests: {cpu: 100m}}}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: front, namespace: shop}
spec: {maxUnavailable: BOUND, selector: {matchLabels: {app: front}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: migrate}
`

// TestDaemonSetsAndBudgetsFromManifests drains a node, loses another and lets one join: an agent runs on every machine that is left, and a budget
// that allows no pod to be missing keeps those of the node where they are.
func TestDaemonSetsAndBudgetsFromManifests(t *testing.T) {
	for bound, moves := range map[string]bool{"1": true, "0": false} {
		dir := folder(t, map[string]string{"shop.yaml": shop, "agents.yaml": strings.Replace(agents, "BOUND", bound, 1)})
		s := parse(t, "nodes 6 zones 3\nworkloads "+dir+"\nat 15s drain n2\nat 25s join 1\nat 30s crash n6\nrun 80s\nexpect ready within 20s\n")
		if !slices.Equal(s.LeftOut, []string{"CronJob (1)", "Service (1)"}) {
			t.Errorf("left out: %v", s.LeftOut)
		}
		result, err := s.Run(t.Context(), Options{})
		if err != nil || len(result.Failed()) > 0 {
			t.Fatalf("maxUnavailable %s: %v: %+v", bound, err, result.Failed())
		}
		agents, front := map[string]bool{}, 0
		for _, e := range result.Events {
			if workload, _, _ := strings.Cut(e.Pod, "/"); e.Kind == model.EventBound && workload == "agent" {
				agents[e.Node] = true
			} else if e.Kind == model.EventBound && workload == "shop-front" && e.At.Seconds() > 15 && e.At.Seconds() < 30 {
				front++
			}
		}
		if len(agents) != 7 {
			t.Errorf("agents were placed on %v", agents)
		}
		if (front > 0) != moves {
			t.Errorf("maxUnavailable %s: %d pods of front were moved by the drain", bound, front)
		}
	}
}

func TestManifestMistakes(t *testing.T) {
	for say, content := range map[string]string{
		"shop.yaml: document 1, a Deployment: ":                  strings.Replace(shop, "replicas: 6", "replicsa: 6", 1),
		`unknown field "replicsa"`:                               strings.Replace(shop, "replicas: 6", "replicsa: 6", 1),
		"shop-front: -6 replicas":                                strings.Replace(shop, "replicas: 6", "replicas: -6", 1),
		"document 3, a StatefulSet":                              strings.Replace(shop, "cpu: 500m", "cpu: lots", 1),
		"asks for -1 cpu":                                        strings.Replace(shop, "cpu: 250m", "cpu: -1", 1),
		"document 1: ":                                           "a: [",
		"has no container":                                       strings.Replace(shop, "containers:\n      - {name: main", "initContainers:\n      - {name: main", 1),
		"with a Deployment, a StatefulSet, a DaemonSet or a Job": "kind: Service\napiVersion: v1\n",
		`the folder has no workload "dbb" (did you mean "db"?)`:  shop,
	} {
		dir := folder(t, map[string]string{"shop.yaml": content})
		line := "workloads " + dir
		if strings.Contains(say, "dbb") {
			line += " only dbb"
		}
		_, err := Parse(strings.NewReader("nodes 3\n"+line+"\nrun 60s\n"), "")
		if err == nil || !strings.Contains(err.Error(), say) || !strings.HasPrefix(err.Error(), "line 2, column ") {
			t.Errorf("%v; want %q", err, say)
		}
	}
	if _, err := Parse(strings.NewReader("nodes 3\nworkloads /nowhere\nrun 60s\n"), ""); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Error(err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(shop))
	f.Fuzz(func(t *testing.T, content []byte) {
		all := manifests{others: map[string]int{}}
		err := all.read(content)
		all.protect()
		for _, w := range all.workloads {
			if err == nil && (w.Replicas < 1 || w.Name == "" || w.Template == nil) {
				t.Fatalf("%q gives %+v", content, w)
			}
		}
	})
}
