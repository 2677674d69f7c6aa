package cli

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"shoal/peer/admin"
)

func TestExplainPlacement(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SHOAL_DATA_DIR", dir)
	answers := map[string]*admin.Placement{
		"ns/placed": {
			Namespace: "ns", Pod: "placed", Shard: 3, Leader: "alpha", On: "n1", Waits: "it is on node n1 already", Node: "n2",
			Nodes: []admin.NodePlacement{
				{Node: "n2", Scores: map[string]int64{"NodeResourcesFit": 90, "ImageLocality": 0}, Total: 90},
				{Node: "n1", Scores: map[string]int64{"NodeResourcesFit": 70, "ImageLocality": 0}, Total: 70},
				{Node: "n3", Reasons: []string{"Insufficient cpu", "node(s) were unschedulable"}},
			},
		},
		"default/waits": {
			Namespace: "default", Pod: "waits", Message: "0/1 nodes are available: 1 Insufficient cpu.",
			Preempts: &admin.Preemption{Node: "n1", Victims: []string{"ns/low"}}, Nodes: []admin.NodePlacement{{Node: "n1", Reasons: []string{"Insufficient cpu"}}},
		},
	}
	startSocket(t, dir, admin.Calls{ExplainPlacement: func(_ context.Context, namespace, pod string) (*admin.Placement, error) {
		if answer := answers[namespace+"/"+pod]; answer != nil {
			return answer, nil
		}
		return nil, errors.New("pod " + namespace + "/" + pod + " does not exist")
	}})
	out, err := invoke(t, Parts{}, "explain-placement", "ns/placed")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"it is on node n1 already", "It goes to n2", "n1 (here)", "NODERESOURCESFIT", "Insufficient cpu; node(s) were unschedulable"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "IMAGELOCALITY") {
		t.Errorf("a score that is the same everywhere is shown:\n%s", out)
	}
	if out, err = invoke(t, Parts{}, "explain-placement", "waits"); err != nil || !strings.Contains(out, "0/1 nodes are available: 1 Insufficient cpu.") ||
		!strings.Contains(out, "Room for it comes on n1 when these have left: ns/low") {
		t.Errorf("%v:\n%s", err, out)
	}
	var read admin.Placement
	if out, err = invoke(t, Parts{}, "explain-placement", "-n", "ns", "placed", "-o", "json"); err != nil || json.Unmarshal([]byte(out), &read) != nil || len(read.Nodes) != 3 {
		t.Errorf("as JSON: %v:\n%s", err, out)
	}
	if _, err = invoke(t, Parts{}, "explain-placement", "none"); err == nil || !strings.Contains(err.Error(), "default/none does not exist") {
		t.Errorf("a pod that does not exist: %v", err)
	}
}
