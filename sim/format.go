package sim

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"shoal/sim/model"
)

// Text writes the scenario down again; Parse reads it as the same. Faults that are drawn from the seed stay one line.
func (s *Scenario) Text() string {
	var b strings.Builder
	for _, line := range Wrap(s.Title, 118) {
		b.WriteString("# " + line + "\n")
	}
	c := s.Config
	fmt.Fprintf(&b, "seed %d\n", c.Seed)
	fmt.Fprintf(&b, "nodes %d zones %d cpu %s memory %s pods %s\n", c.Nodes, max(c.Zones, 1),
		quantity(c.Allocatable, corev1.ResourceCPU), quantity(c.Allocatable, corev1.ResourceMemory), quantity(c.Allocatable, corev1.ResourcePods))
	fmt.Fprintf(&b, "shards %d\n", max(c.Shards, 1))
	for _, line := range manifestLines(c.Workloads) {
		b.WriteString(line + "\n")
	}
	for _, w := range c.Workloads {
		if w.Folder != "" {
			continue
		}
		if w.Job != nil {
			b.WriteString(jobText(w))
			continue
		}
		kind := "deployment"
		if w.Stateful {
			kind = "statefulset"
		}
		fmt.Fprintf(&b, "%s %s replicas %d cpu %s memory %s\n", kind, w.Name, w.Replicas,
			quantity(w.Requests, corev1.ResourceCPU), quantity(w.Requests, corev1.ResourceMemory))
	}
	if c.Operators {
		b.WriteString("operators\n")
	}
	faults := slices.Clone(c.Faults)
	slices.SortStableFunc(faults, func(a, b model.Fault) int { return int(a.At - b.At) })
	for _, f := range faults {
		fmt.Fprintf(&b, "at %s %s\n", f.At, FaultText(f))
	}
	if r := c.Random; r.Faults > 0 {
		fmt.Fprintf(&b, "random %d faults from %s until %s\n", r.Faults, r.From, r.Until)
	}
	fmt.Fprintf(&b, "run %s\n", c.Length)
	for _, e := range s.Expects {
		b.WriteString(e.Text + "\n")
	}
	return b.String()
}

func quantity(of corev1.ResourceList, name corev1.ResourceName) string {
	q := of[name]
	return q.String()
}

// Wrap cuts a text at white space into lines of at most so many letters, unless a word is longer.
func Wrap(text string, most int) []string {
	var lines []string
	for _, word := range strings.Fields(text) {
		if n := len(lines); n > 0 && len(lines[n-1])+1+len(word) <= most {
			lines[n-1] += " " + word
			continue
		}
		lines = append(lines, word)
	}
	return lines
}
