package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"shoal/sim"
	"shoal/sim/model"
)

// mostLines is how much of a timeline is printed.
const mostLines = 60

// Heading says what will be run, before it is.
func Heading(w io.Writer, s *sim.Scenario) {
	title := s.Name
	if s.Title != "" {
		title += ": " + s.Title
	}
	for _, line := range append(sim.Wrap(title, 118), Describe(s)) {
		fmt.Fprintln(w, line)
	}
	if len(s.LeftOut) > 0 {
		fmt.Fprintf(w, "Not simulated, though the folder has it: %s\n", strings.Join(s.LeftOut, ", "))
	}
}

// Describe is a cluster in one line.
func Describe(s *sim.Scenario) string {
	c := s.Config
	pods := 0
	for _, workload := range c.Workloads {
		pods += workload.Replicas
	}
	faults := 0
	for _, f := range s.Faults() {
		if !ending(f.Kind) {
			faults++
		}
	}
	return fmt.Sprintf("%s in %s, %s besides the meta shard, %s of %s, %s; seed %d, %s of virtual time",
		count(c.Nodes, "node"), count(c.Zones, "zone"), count(c.Shards, "shard"), count(pods, "pod"), count(len(c.Workloads), "workload"),
		count(faults, "fault"), c.Seed, short(c.Length))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Text prints a run for a terminal.
func Text(w io.Writer, r *sim.Result) error {
	fmt.Fprintln(w, "\nWhat happened")
	entries := Timeline(r)
	from := window(entries)
	if from > 0 {
		fmt.Fprintf(w, "            … %d lines before\n", from)
	}
	for _, e := range entries[from:min(len(entries), from+mostLines)] {
		at := fmt.Sprintf("%.1f s", e.At.Seconds())
		for _, line := range sim.Wrap(e.Text, 118) {
			fmt.Fprintf(w, "  %9s  %s\n", at, line)
			at = ""
		}
	}
	if more := len(entries) - from - mostLines; more > 0 {
		fmt.Fprintf(w, "             … %d more lines: --report FILE has all of them, --trace everything\n", more)
	}
	checks(w, r.Checks)
	fmt.Fprintln(w, "\nFigures")
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, f := range Figures(r) {
		fmt.Fprintf(table, "  %s\t%s\n", f.Name, f.Value)
	}
	return table.Flush()
}

// window is the first line to print: the beginning, or what led to the first violation if that comes later.
func window(entries []Entry) int {
	for i, e := range entries {
		if e.Kind == model.EventViolation && i >= mostLines {
			return max(0, min(i-mostLines/2, len(entries)-mostLines))
		}
	}
	return 0
}

// checks prints the verdicts: promises that are kept by name, everything else with what was found.
func checks(w io.Writer, all []sim.Check) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w, "\nChecks")
	var kept []string
	for _, c := range all {
		if c.OK && c.Line == 0 {
			kept = append(kept, c.Name)
		}
	}
	for i, line := range sim.Wrap(strings.Join(kept, ", "), 110) {
		mark := " "
		if i == 0 {
			mark = "✓"
		}
		fmt.Fprintf(w, "  %s %s\n", mark, line)
	}
	for _, c := range all {
		switch {
		case !c.OK && c.Line == 0:
			fmt.Fprintf(w, "  ✗ %s: %s. But:\n", c.Name, c.Says)
			for _, found := range c.Found {
				fmt.Fprintf(w, "      %s\n", found)
			}
		case c.OK && c.Line != 0:
			fmt.Fprintf(w, "  ✓ %s: %s\n", c.Says, strings.Join(c.Found, ", "))
		case c.Line != 0:
			fmt.Fprintf(w, "  ✗ %s (line %d), but: %s\n", c.Says, c.Line, strings.Join(c.Found, ", "))
		}
	}
}
