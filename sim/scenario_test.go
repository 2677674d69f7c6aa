package sim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestScenarios runs every text of the folder and compares with what it expects. With -v it prints what came of it.
func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob("scenarios/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			scenario, err := Parse(file)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			var trace strings.Builder
			verdict, err := scenario.Run(&trace)
			if err != nil {
				t.Fatal(err)
			}
			o := verdict.Outcome
			t.Logf("%d steps, ready %s after the last fault, %d evictions, %d elections, %d fenced, %d refused, trace %s",
				o.Steps, o.Settled, o.Evictions, o.Elections, o.Fenced, o.Refused, o.Hash[:16])
			for _, wrong := range verdict.Wrong {
				t.Errorf("%s (seed %d): %s", path, scenario.Config.Seed, wrong)
			}
			if t.Failed() {
				t.Log(trace.String())
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const head = "nodes 3 zones 1 cpu 4 memory 8Gi pods 110\n"
	for _, c := range []struct {
		text string
		line int
		say  string // part of the message
	}{
		{"", 0, "how many nodes"},
		{head + "run 60s\n", 2, "without an expectation"},
		{head + "explode n1\n", 2, `nothing begins with "explode"`},
		{"nodes three zones 1 cpu 4 memory 8Gi pods 110\n", 1, `"three" is no number`},
		{"nodes 3 zones 1 cpu 4\n", 1, "ends too early"},
		{head + "at soon crash n1\n", 2, `"soon" is no duration`},
		{head + "at 10s crash n4\n", 2, "they are n1 to n3"},
		{head + "at 10s cut zone b\n", 2, `there is no zone "b"`},
		{head + "at 10s melt n1\n", 2, `"melt" is nothing that can happen`},
		{head + "run 60s please\n", 2, `"please" is too much`},
		{head + "deployment Web replicas 3 cpu 1 memory 1Gi\n", 2, "cannot be a name"},
		{head + "deployment web replicas 3 cpu much memory 1Gi\n", 2, `"much" is no quantity`},
		{head + "\n# nothing\nexpect evictions ~ 3\n", 4, `"~" does not compare`},
	} {
		_, err := Parse(strings.NewReader(c.text))
		var syntax *SyntaxError
		if !errors.As(err, &syntax) || syntax.Line != c.line || !strings.Contains(err.Error(), c.say) || syntax.Expected == "" {
			t.Errorf("%q: %v; want line %d and %q", c.text, err, c.line, c.say)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("nodes 3 zones 1 cpu 4 memory 8Gi pods 110\nat 10s crash n1\nrun 60s\nexpect no brake\n")
	f.Fuzz(func(_ *testing.T, text string) { _, _ = Parse(strings.NewReader(text)) })
}
