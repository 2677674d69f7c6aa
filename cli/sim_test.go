package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSimRun types what users type: a built-in scenario by name, a report, other seeds and lengths, random faults.
func TestSimRun(t *testing.T) {
	page := filepath.Join(t.TempDir(), "report.html")
	out, err := invoke(t, Parts{}, "sim", "run", "node_dies", "--report", page, "--seed", "7")
	if err != nil || !strings.Contains(out, "n5 is judged lost") || !strings.Contains(out, "✓ capacity, identity") || !strings.Contains(out, "seed 7") {
		t.Errorf("%v:\n%s", err, out)
	}
	if content, err := os.ReadFile(page); err != nil || !strings.Contains(string(content), "<svg") {
		t.Errorf("the report: %v", err)
	}
	first, err := invoke(t, Parts{}, "sim", "run", "--random", "--seed", "5", "--peers", "5", "--for", "2m", "--trace")
	if err != nil || !strings.Contains(first, "seed 5") || !strings.Contains(first, "creates /registry/pods/") {
		t.Errorf("%v:\n%.2000s", err, first)
	}
	out, err = invoke(t, Parts{}, "sim", "run", "--random", "--liveness", "--seed", "5", "--peers", "5", "--for", "2m")
	if err != nil || !strings.Contains(out, "core n") || !strings.Contains(out, "convergence") || strings.Contains(out, "✗") {
		t.Errorf("%v:\n%.2000s", err, out)
	}
	out, err = invoke(t, Parts{}, "sim", "list")
	if err != nil || !strings.Contains(out, "zone_lost") {
		t.Errorf("%v:\n%s", err, out)
	}
	out, err = invoke(t, Parts{}, "sim", "faults")
	if err != nil || !strings.Contains(out, "crash TARGET [for DURATION]") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestSimRunsAFile prints a scenario, changes it, runs the file, and demands a failure where it promises too much.
func TestSimRunsAFile(t *testing.T) {
	text, err := invoke(t, Parts{}, "sim", "show", "node_dies")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "mine.txt")
	if err := os.WriteFile(file, []byte(strings.Replace(text, "within 20s", "within 2s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "failures")
	out, err := invoke(t, Parts{}, "sim", "run", file, "--folder", folder)
	if err == nil || !strings.Contains(err.Error(), "checks failed") || !strings.Contains(out, "✗ convergence") || !strings.Contains(out, "not within 2s") {
		t.Errorf("%v:\n%s", err, out)
	}
	_, command, _ := strings.Cut(out, "peer sim run ")
	out, again := invoke(t, Parts{}, "sim", "run", strings.TrimSpace(command), "--shrink", "0s", "--folder", t.TempDir())
	if again == nil || !strings.Contains(out, "✗ convergence") || !strings.Contains(out, "Shrunk from mine, seed 1") {
		t.Errorf("replayed with %q: %v\n%s", command, again, out)
	}
}

func TestSimMistakes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.txt")
	if err := os.WriteFile(bad, []byte("nodes 3\nat 10s crsh n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, say string }{
		{"run", "either a scenario"},
		{"run node_dies --random", "either a scenario"},
		{"run node_deis", `did you mean "node_dies"`},
		{"run " + bad, `bad.txt: line 2, column 8: "crsh" is nothing that can happen (did you mean "crash"?)`},
		{"run node_dies --peers 3", "they are n1 to n3"},
		{"run node_dies --peers=-3", "-3 peers"},
		{"run node_dies --for 10s", "crash happens at 20s"},
		{"run node_dies --report /nowhere/at/all.html", "cannot be written"},
		{"run --random --peers 99999999", "expected: 3 to"},
		{"run --random --for 1s", "no time for random faults"},
		{"run --random --seed -1", "--seed"},
		{"show nothing", "no built-in scenario"},
	} {
		out, err := invoke(t, Parts{}, append([]string{"sim"}, strings.Fields(c.args)...)...)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("sim %s: %v; want %q\n%s", c.args, err, c.say, out)
		}
	}
}

// TestSimInterrupted ends a run as Ctrl-C does: what was simulated is told, and the command fails.
func TestSimInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &stopper{at: "is judged Ready=", stop: cancel}
	err := run(ctx, []string{"sim", "run", "many_faults", "--trace"}, Parts{}, streams{strings.NewReader(""), out, out})
	if err == nil || !strings.Contains(err.Error(), "interrupted after") || !strings.Contains(out.String(), "What happened") || strings.Contains(out.String(), "\nChecks") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// stopper calls stop when a text has been written.
type stopper struct {
	strings.Builder
	at   string
	stop func()
}

func (s *stopper) Write(b []byte) (int, error) {
	n, err := s.Builder.Write(b)
	if strings.Contains(s.String(), s.at) {
		s.stop()
	}
	return n, err
}
